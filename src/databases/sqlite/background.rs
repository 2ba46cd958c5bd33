//! What the writer thread does in the background, between other work: folding marks, comparing tables, removing what is
//! old; and what concerns the file as a whole: opening it again, or giving its log a new epoch. Each is a short
//! transaction that may be done again later, and none waits long for another process.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bourn_protocol::Seq;
use rusqlite::{Transaction, TransactionBehavior};

use super::file::{history, sequencer, versions};
use super::log::retention;
use super::tables::reconcile::Reconcile;
use super::triggers::installed;
use super::writer::{GONE, TICK, WriterThread, unix_secs};
use super::{admin, connect, error, ledger};
use crate::head::Head;

/// How long it waits for another process that holds the database; mutations must not wait behind it.
const PATIENCE: Duration = Duration::from_millis(100);

impl WriterThread {
    /// Folds marks into the database until so few are left that the next commit of ours folds them along: each extra
    /// commit can fail a transaction of another process.
    pub(super) fn fold(&self) {
        self.shared.fold_asked.store(false, Ordering::Relaxed);
        let folded = self.in_background(|| {
            while self.history.beside.unfolded() >= sequencer::FOLD_ROWS {
                let transaction =
                    Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
                let pending = self.history.fold(&transaction, sequencer::FOLD_ROWS)?;
                transaction.commit()?;
                pending.committed();
                std::thread::park_timeout(TICK);
            }
            Ok(())
        });
        if let Err(failure) = folded {
            // The next look at the file asks for it again.
            let failure = error::storage(&failure);
            tracing::debug!(%failure, "marks cannot be folded now");
        }
    }

    /// Removes expired mutations from the ledger; takes no lock where there are none.
    pub(super) fn expire_ledger(&self) -> rusqlite::Result<()> {
        let now = unix_secs();
        let sql = "SELECT expires_at < ?1 FROM bourn_ledger ORDER BY id LIMIT 1";
        let mut oldest = self.connection.prepare_cached(sql)?;
        let expired = oldest.query_map([now], |row| row.get::<_, bool>(0))?.next().transpose()?;
        if expired == Some(true) {
            self.in_background(|| ledger::expire(&self.connection, now))?;
        }
        Ok(())
    }

    /// Tries a small write, after one was refused.
    pub(super) fn probe(&self) {
        let tried = self.in_background(|| {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            transaction.execute("UPDATE bourn_context SET client_id = hex(randomblob(1000))", [])?;
            transaction.execute("UPDATE bourn_context SET client_id = NULL", [])?;
            transaction.commit()
        });
        self.shared.committed(tried.map_err(|failure| error::storage(&failure)).as_ref());
    }

    pub(super) fn settle_if_in_doubt(&mut self, reconciles: &mut VecDeque<Reconcile>) {
        if !self.history.in_place() {
            self.reopen(reconciles);
        } else if self.history.in_doubt() {
            self.settle(reconciles);
        }
    }

    /// Finds out whether the log is the one that was served, gives it a new epoch if it is not, and publishes the log
    /// that is served from here on.
    pub(super) fn settle(&mut self, reconciles: &mut VecDeque<Reconcile>) {
        let before = self.history.served().epoch;
        let settled = self.history.settle(&self.connection);
        let settled = settled.and_then(|served| Ok((served.epoch, self.history.number(&self.connection)?)));
        match settled {
            Ok((epoch, _)) if epoch == before => {}
            Ok((epoch, seq)) => self.epoch_changed(Head { epoch, seq }, reconciles),
            Err(failure) => {
                self.shared.writer_stands(Some(error::storage(&failure).to_string()));
                std::thread::park_timeout(TICK);
            }
        }
    }

    /// Publishes a log of another epoch, drops what is known of the one before, and compares the tables with it.
    pub(super) fn epoch_changed(&mut self, head: Head, reconciles: &mut VecDeque<Reconcile>) {
        if let Err(failure) = self.history.note(&self.connection, head.seq) {
            tracing::debug!(%failure, "cannot note what is served");
        }
        self.head.send_replace(head);
        if let Ok(version) = versions::of_log(&self.connection) {
            self.version.send_replace(version);
        }
        self.streams.epoch_changed(&self.connection);
        *reconciles = self.refresh(VecDeque::new());
        self.shared.writer_stands(None);
    }

    /// Goes on with the file that is at the path now. It does not make one.
    pub(super) fn reopen(&mut self, reconciles: &mut VecDeque<Reconcile>) {
        if self.history.in_place() {
            self.history.set_gone(false);
            self.shared.file_stands(None);
            return;
        }
        if !self.history.is_gone() {
            tracing::error!(path = %self.history.path.display(), "{GONE}");
        }
        self.history.set_gone(true);
        self.shared.file_stands(Some(GONE));
        if history::inode(&self.history.path).is_err() {
            return;
        }
        self.history.set_log_aside();
        let opened = connect::writer(&self.history.path, self.busy)
            .map_err(|failure| error::storage(&failure).to_string())
            .and_then(admin::take_over)
            .and_then(|(connection, new)| {
                let served = self.history.begin_again(&connection, new);
                let served = served.map_err(|failure| error::storage(&failure).to_string())?;
                self.connection = connection;
                Ok(served)
            });
        match opened {
            Ok(served) => {
                tracing::warn!(path = %self.history.path.display(), "going on with the file that is at the path now");
                self.history.set_gone(false);
                self.shared.file_stands(None);
                self.shared.committed(Ok(&()));
                let seq = self.history.number(&self.connection).unwrap_or(Seq::ZERO);
                self.epoch_changed(Head { epoch: served.epoch, seq }, reconciles);
            }
            Err(reason) => self.shared.writer_stands(Some(reason)),
        }
    }

    /// Does work that can be done again later, without waiting long for another process.
    pub(super) fn in_background<T>(&self, work: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.connection.busy_timeout(PATIENCE.min(self.busy))?;
        let result = work();
        self.connection.busy_timeout(self.busy)?;
        result
    }

    /// Removes some old activities; returns whether there may be more.
    pub(super) fn retention_step(&self) -> bool {
        let Some(retention) = self.retention else { return false };
        let stepped = self.in_background(|| {
            let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let text = |millis: i64| {
                transaction
                    .prepare_cached("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', ?1 / 1000.0, 'unixepoch')")?
                    .query_row([millis], |row| row.get(0))
            };
            let history = text(retention.history_bound())?;
            let audit = retention.audit_bound().map(text).transpose()?;
            let pending = self.history.fold(&transaction, sequencer::FOLD_ROWS)?;
            let more = retention::step(&transaction, &retention::Bounds { history, audit })?;
            transaction.commit()?;
            pending.committed();
            Ok(more)
        });
        stepped.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "old activities cannot be taken out now");
            false
        })
    }

    pub(super) fn reconcile_step(&self, reconciles: &mut VecDeque<Reconcile>) {
        let Some(current) = reconciles.front_mut() else { return };
        let stepped = self.in_background(|| {
            let (transaction, pending) = self.history.begin_numbered(&self.connection)?;
            let finished = current.step(&transaction)?;
            if finished {
                installed::compared(&transaction, &current.entity)?;
            }
            let head = sequencer::head(&transaction)?;
            if head > pending.head {
                sequencer::seal(&transaction, pending.head, head)?;
            }
            transaction.commit()?;
            pending.committed();
            Ok((finished, head))
        });
        match stepped {
            Ok((finished, head)) => {
                self.publish(head);
                self.shared.writer_stands(None);
                self.shared.reconciling(&current.entity.name, (!finished).then_some(current.looked_at));
                if finished {
                    tracing::info!(
                        entity = &*current.entity.name,
                        keys = current.looked_at,
                        "the log has the table as it is"
                    );
                    self.count_left_out(&current.entity, &current.schema);
                    reconciles.pop_front();
                }
            }
            Err(failure) => {
                let reason = error::storage(&failure).to_string();
                tracing::warn!(
                    entity = &*current.entity.name,
                    reason,
                    "cannot compare the table with the log now"
                );
                self.shared.writer_stands(Some(reason));
                // The look has waited for a busy database already; any other failure is left for the next look at the
                // tables.
                if !matches!(failure.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy)) {
                    reconciles.pop_front();
                    self.shared.refresh_owed.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}
