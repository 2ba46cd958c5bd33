//! Finding the rows that the log refuses: a refused batch is tried in pieces, each rolled back at once, until the rows
//! that can be appended and those that cannot are told apart. The leader then appends the former and stops the entity
//! types of the latter.

use std::collections::HashSet;
use std::sync::Arc;

use bourn_protocol::{Action, Seq};
use sqlx::PgConnection;

use super::CaptureError;
use super::append::Appender;
use super::failure::{self, Remedy};
use super::new_activity::NewActivity;
use super::settle::RowName;
use crate::databases::postgres::connections::statement;
use crate::databases::postgres::error;

/// The code for a row that is too large for the log, as the database would give it.
const TOO_LARGE: &str = "54000";

/// A row that the log refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RefusedRow {
    pub(super) row: RowName,
    /// The database's SQLSTATE.
    pub(super) code: String,
}

/// The result of sifting a batch.
#[derive(Debug, Default)]
pub(super) struct Sifted {
    /// The activities that the log takes.
    pub(super) activities: Vec<NewActivity>,
    /// The first refused row of each entity type that must stop; of these types, `activities` has only deletions.
    pub(super) refusals: Vec<RefusedRow>,
}

/// The transaction in which a batch is tried.
pub(super) struct Trial<'a> {
    pub(super) transaction: &'a mut PgConnection,
    /// The last place of the log that the transaction sees.
    pub(super) behind: Seq,
}

impl Appender {
    /// Sifts a refused batch, within a transaction. Refused rows that are `skipped` are passed over: if the log has one
    /// alive, it gets a deletion.
    pub(super) async fn sift(
        &mut self,
        trial: &mut Trial<'_>,
        activities: Vec<NewActivity>,
        skipped: &HashSet<RowName>,
    ) -> Result<Sifted, CaptureError> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for activity in &activities {
            if !names.contains(&activity.entity.name) {
                names.push(activity.entity.name.clone());
            }
        }
        let mut activities: Vec<Option<NewActivity>> = activities.into_iter().map(Some).collect();
        let mut refusals = Vec::new();
        for name in names {
            let of_type = |activity: &Option<NewActivity>| {
                activity.as_ref().is_some_and(|activity| activity.entity.name == name)
            };
            let listed = |activity: &NewActivity| {
                skipped.contains(&(activity.entity.name.clone(), activity.key.clone()))
            };
            let mut others = Vec::new();
            for slot in activities.iter_mut().filter(|activity| of_type(activity)) {
                match slot.take() {
                    Some(activity) if listed(&activity) => *slot = self.pass_over(trial, activity).await?,
                    activity => {
                        others.extend(activity.clone());
                        *slot = activity;
                    }
                }
            }
            if let Some((at, code)) = self.first_refused(trial, &others).await? {
                let key = others[at].key.clone();
                refusals.push(RefusedRow { row: (name.clone(), key), code });
                others.retain(|activity| activity.action == Action::Delete);
                let ends = self.refused(trial, &others).await?.is_none();
                activities.retain(|activity| {
                    !of_type(activity)
                        || (ends
                            && activity.as_ref().is_some_and(|activity| activity.action == Action::Delete))
                });
            }
        }
        Ok(Sifted { activities: activities.into_iter().flatten().collect(), refusals })
    }

    /// The part of a skipped row's change that the log takes: the change, or else the deletion of the version that it
    /// has.
    async fn pass_over(
        &mut self,
        trial: &mut Trial<'_>,
        activity: NewActivity,
    ) -> Result<Option<NewActivity>, CaptureError> {
        if self.refused(trial, std::slice::from_ref(&activity)).await?.is_none() {
            return Ok(Some(activity));
        }
        tracing::warn!(entity = &*activity.entity.name, key = activity.key, "a skipped row is passed over");
        if activity.action != Action::Update {
            return Ok(None);
        }
        let end = NewActivity { action: Action::Delete, value: None, changed_keys: None, ..activity };
        let refused = self.refused(trial, std::slice::from_ref(&end)).await?;
        Ok(refused.is_none().then_some(end))
    }

    /// The first of these activities that the log refuses, and the code of the refusal.
    async fn first_refused(
        &mut self,
        trial: &mut Trial<'_>,
        activities: &[NewActivity],
    ) -> Result<Option<(usize, String)>, CaptureError> {
        if self.refused(trial, activities).await?.is_none() {
            return Ok(None);
        }
        // Those before `low` are accepted; those before `high` are not.
        let (mut low, mut high) = (0, activities.len());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.refused(trial, &activities[low..middle]).await? {
                Some(_) => high = middle,
                None => low = middle,
            }
        }
        // Tried once more: an activity that is accepted alone is not to blame.
        let alone = self.refused(trial, &activities[low..high]).await?;
        Ok(alone.map(|code| (low, code)))
    }

    /// Tries to append, and rolls it back; returns the code of the refusal, if it was refused.
    async fn refused(
        &mut self,
        trial: &mut Trial<'_>,
        activities: &[NewActivity],
    ) -> Result<Option<String>, CaptureError> {
        if activities.is_empty() {
            return Ok(None);
        }
        if activities.iter().any(NewActivity::is_too_large) {
            return Ok(Some(TOO_LARGE.into()));
        }
        statement("SAVEPOINT tried").execute(&mut *trial.transaction).await?;
        let tried = self.insert(trial.transaction, activities, trial.behind).await;
        statement("ROLLBACK TO SAVEPOINT tried").execute(&mut *trial.transaction).await?;
        self.forget_feeds();
        match tried {
            Ok(_) => Ok(None),
            Err(CaptureError::Database(failure)) if failure::of_statement(&failure) == Remedy::Row => {
                Ok(Some(error::code(&failure).unwrap_or_default()))
            }
            Err(lost) => Err(lost),
        }
    }
}
