//! The leader's handling of rows that the log refuses: it stops their entity types, and goes on with the others. A stop
//! is noted in the database before the position moves past the row, so that it cannot be forgotten; the changes of the
//! type's rows from there on are made good by comparing its table, once an operator has ended the stop.

use std::collections::HashSet;

use bourn_protocol::Action;

use super::Leader;
use crate::databases::postgres::capture::CaptureError;
use crate::databases::postgres::capture::append::AppendInParts;
use crate::databases::postgres::capture::change::Change;
use crate::databases::postgres::capture::failure::{self, Remedy};
use crate::databases::postgres::capture::new_activity::{NewActivity, mark_last_of_each};
use crate::databases::postgres::capture::settle::RowName;
use crate::databases::postgres::capture::sift::{Sifted, Trial};
use crate::databases::postgres::log::stops::{self, Stop};

/// The stops, as the leader knows them.
#[derive(Debug, Default)]
pub(in super::super) struct Stops {
    /// Those in the database.
    noted: Vec<Stop>,
    /// Those that are not in the database yet.
    fresh: Vec<Stop>,
    /// Rows that are passed over where the log refuses them.
    skipped: HashSet<RowName>,
}

impl Stops {
    /// Whether an entity type has stopped.
    pub(in super::super) fn has(&self, name: &str) -> bool {
        self.noted.iter().chain(&self.fresh).any(|stop| *stop.entity_type == *name)
    }

    /// Whether a change is of a row that may be passed over.
    pub(in super::super) fn skips(&self, change: &Change) -> bool {
        let listed = |key: &str| self.skipped.contains(&(change.source.entity.name.clone(), key.to_owned()));
        !self.skipped.is_empty() && change.key().into_iter().chain(change.former_key()).any(listed)
    }
}

impl Leader<'_> {
    /// Reads the stops from the database, without those that an operator has ended since.
    pub(in super::super) async fn read_stops(&mut self) -> Result<(), CaptureError> {
        let mut reading = self.inner.db.single().await?;
        self.stops.noted = stops::read(reading.connection()).await?;
        self.stops.skipped = stops::skipped(reading.connection()).await?;
        // Also when nothing has changed: another server's stops may have been published before this one led.
        self.publish_stops();
        Ok(())
    }

    /// Leaves out the activities of stopped entity types, except deletions: lists are served meanwhile, and may have
    /// shown rows that the log never gets.
    pub(in super::super) fn without_stopped(&self, mut activities: Vec<NewActivity>) -> Vec<NewActivity> {
        activities
            .retain(|activity| activity.action == Action::Delete || !self.stops.has(&activity.entity.name));
        activities
    }

    /// Appends whole transactions and moves the position; where the log refuses rows, without their entity types.
    /// Returns what was appended.
    pub(in super::super) async fn append_batch(
        &mut self,
        activities: Vec<NewActivity>,
    ) -> Result<Vec<NewActivity>, CaptureError> {
        let activities = self.without_stopped(activities);
        match self.appender.append(&activities, self.pending.received).await {
            Ok(()) => Ok(activities),
            Err(lost) if lost.remedy() == Remedy::Row => {
                // Rolled back afterwards: it only finds out what can be appended.
                let mut trying = self.inner.db.begin().await?;
                let mut trial = Trial { transaction: &mut trying, behind: self.appender.head };
                let sifted = self.appender.sift(&mut trial, activities, &self.stops.skipped).await?;
                trying.rollback().await?;
                let mut activities = self.stop_refused(sifted);
                mark_last_of_each(&mut activities);
                self.note_stops().await?;
                self.appender.append(&activities, self.pending.received).await?;
                Ok(activities)
            }
            Err(lost) => Err(lost),
        }
    }

    /// Appends a part of a transaction; where the log refuses rows, without their entity types, which are to be noted
    /// before the transaction is committed.
    pub(in super::super) async fn append_part(
        &mut self,
        parts: &mut AppendInParts,
        activities: Vec<NewActivity>,
    ) -> Result<(), CaptureError> {
        let activities = self.without_stopped(activities);
        match self.appender.append_part(parts, &activities).await {
            Err(lost) if lost.remedy() == Remedy::Row => {
                let mut trial = Trial { transaction: &mut parts.transaction, behind: parts.head };
                let sifted = self.appender.sift(&mut trial, activities, &self.stops.skipped).await?;
                let activities = self.stop_refused(sifted);
                self.appender.append_part(parts, &activities).await
            }
            done => done,
        }
    }

    /// Stops the entity types whose rows the log refuses; returns the activities that it takes.
    fn stop_refused(&mut self, sifted: Sifted) -> Vec<NewActivity> {
        for refusal in sifted.refusals {
            let (entity_type, key) = refusal.row;
            if self.stops.has(&entity_type) {
                continue;
            }
            let reason = failure::why_refused(&refusal.code);
            self.stop_type(Stop { entity_type, key, reason });
        }
        sifted.activities
    }

    /// Stops an entity type; the stop is still to be noted.
    pub(in super::super) fn stop_type(&mut self, stop: Stop) {
        self.reconciler.leave(&stop.entity_type);
        self.stops.fresh.push(stop);
    }

    /// Publishes the stops that are noted, and no others: an operator who reads of a stop must be able to end it at
    /// once.
    fn publish_stops(&self) {
        self.inner.shared.set_stops(&self.inner.catalog, self.stops.noted.clone());
    }

    /// Notes new stops durably, then publishes them. To be called before the position moves past their causes.
    pub(in super::super) async fn note_stops(&mut self) -> Result<(), CaptureError> {
        if self.stops.fresh.is_empty() {
            return Ok(());
        }
        let mut transaction = self.inner.db.begin().await?;
        stops::note(&mut transaction, &self.stops.fresh).await?;
        transaction.commit().await?;
        for stop in &self.stops.fresh {
            tracing::error!(
                entity = &*stop.entity_type,
                key = stop.key,
                reason = stop.reason,
                remedy = stop.condition().remedy,
                "the capture of an entity type has stopped"
            );
        }
        self.stops.noted.append(&mut self.stops.fresh);
        self.publish_stops();
        Ok(())
    }
}
