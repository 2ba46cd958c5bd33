//! What happens to subscriptions without a request: appends wake them, leases end, webhooks are tried again. One task
//! does it, woken by the storage's changes and by the clock. It keeps in memory only which subscription follows which
//! stream; the database has the rest.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bourn_protocol::stored::glob;
use bourn_protocol::{Epoch, StreamOffset, StreamPath};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{LIST_PAGE, Refusal, Revision, Subscriptions, keys, parse, unix_millis};
use crate::head::Head;
use crate::streams::StreamChange;

/// The longest sleep: another server may have made a subscription, or made one due earlier.
const LOOK_LEAST: Duration = Duration::from_secs(1);
/// How long to wait before a round that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Subscriptions that are due and looked at in one round.
const DUE_AT_ONCE: usize = 256;
/// Failures after which a round leaves the other subscriptions for the next one: the database is probably away.
const FAILURES_MOST: usize = 8;
/// Streams that are noted one by one; when more have moved, all are looked at.
const MOVED_MOST: usize = 100_000;

/// Which streams concern a subscription.
struct Interest {
    id: String,
    pattern: Option<String>,
    linked: HashSet<StreamPath>,
    /// The wake stream to which the current wake could not be written.
    unannounced: Option<StreamPath>,
}

impl Interest {
    fn concerns(&self, path: &StreamPath) -> bool {
        self.linked.contains(path)
            || self.unannounced.as_ref() == Some(path)
            || self.pattern.as_ref().is_some_and(|pattern| glob::matches(pattern, path.as_str()))
    }
}

/// Changes of streams since the watcher last looked.
#[derive(Default)]
struct UnseenChanges {
    moved: BTreeSet<StreamPath>,
    deleted: BTreeSet<StreamPath>,
    /// Any stream may have changed.
    unknown: bool,
}

impl UnseenChanges {
    fn take(&mut self, changes: &[StreamChange]) {
        for change in changes {
            match change {
                StreamChange::Moved { path, .. } => {
                    self.moved.insert(path.clone());
                }
                StreamChange::Deleted { path, .. } => {
                    self.moved.remove(path);
                    self.deleted.insert(path.clone());
                }
                StreamChange::Unknown => self.unknown = true,
            }
        }
        if self.moved.len() > MOVED_MOST {
            self.moved.clear();
            self.unknown = true;
        }
    }

    /// Takes all changes that are queued.
    fn drain(&mut self, changes: &mut broadcast::Receiver<Arc<[StreamChange]>>) {
        loop {
            match changes.try_recv() {
                Ok(change) => self.take(&change),
                Err(broadcast::error::TryRecvError::Lagged(_)) => self.unknown = true,
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return,
            }
        }
    }
}

/// Looks that requests ask the watcher for: a stream may have moved between a look-up and a save.
#[derive(Default)]
pub(super) struct RequestedLooks {
    /// The streams that have moved, by subscription.
    moved: BTreeMap<String, Vec<StreamPath>>,
    /// Any stream may have moved.
    all: bool,
}

impl RequestedLooks {
    pub(super) fn add(&mut self, id: &str, moved: Option<Vec<StreamPath>>) {
        match moved {
            Some(moved) => self.moved.entry(id.to_owned()).or_default().extend(moved),
            None => self.all = true,
        }
    }
}

/// Why a subscription must be looked at.
#[derive(Default)]
struct PendingLook {
    gone: BTreeSet<StreamPath>,
    here: BTreeSet<StreamPath>,
    /// The wake stream has changed: the wake event may go through now.
    announce: bool,
}

/// The state of the task.
struct SubscriptionWatcher {
    interests: Vec<Interest>,
    /// The interests may have changed.
    stale: bool,
    /// The revision of this server's changes that the interests include.
    revision: Revision,
    unseen: UnseenChanges,
    /// The epoch of the log when the streams were last looked at.
    epoch: Epoch,
    /// The looks that are still to be taken, by subscription. None is removed before it succeeded.
    pending: BTreeMap<String, PendingLook>,
}

impl SubscriptionWatcher {
    fn new(revision: Revision, epoch: Epoch) -> SubscriptionWatcher {
        // Changes from before this task ran are found by looking at everything once.
        let unseen = UnseenChanges { unknown: true, ..UnseenChanges::default() };
        SubscriptionWatcher {
            interests: Vec::new(),
            stale: true,
            revision,
            unseen,
            epoch,
            pending: BTreeMap::new(),
        }
    }

    /// Assigns the changes to the subscriptions that they concern.
    fn distribute(&mut self) {
        let UnseenChanges { moved, deleted, .. } = std::mem::take(&mut self.unseen);
        for interest in &mut self.interests {
            let gone = deleted.iter().filter(|path| interest.linked.contains(*path));
            let gone: Vec<StreamPath> = gone.cloned().collect();
            let here: Vec<StreamPath> =
                moved.iter().filter(|path| interest.concerns(path)).cloned().collect();
            if gone.is_empty() && here.is_empty() {
                continue;
            }
            let look = self.pending.entry(interest.id.clone()).or_default();
            for path in &gone {
                look.here.remove(path);
                interest.linked.remove(path);
            }
            look.announce |= interest.unannounced.as_ref().is_some_and(|path| here.contains(path));
            let follows = |path: &&StreamPath| interest.unannounced.as_ref() != Some(*path);
            interest.linked.extend(here.iter().filter(follows).cloned());
            look.here.extend(here);
            look.gone.extend(gone);
        }
        let known: HashSet<&str> = self.interests.iter().map(|interest| &*interest.id).collect();
        self.pending.retain(|id, _| known.contains(&**id));
    }
}

impl Subscriptions {
    /// Does what is due until `stop` is cancelled, and then finishes what it has begun. `changes` was subscribed to
    /// before any client could append.
    pub async fn run(
        self: Arc<Self>,
        changes: broadcast::Receiver<Arc<[StreamChange]>>,
        stop: CancellationToken,
    ) {
        self.clone().follow(changes, stop).await;
        self.ended.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn follow(
        self: Arc<Self>,
        mut changes: broadcast::Receiver<Arc<[StreamChange]>>,
        stop: CancellationToken,
    ) {
        let mut revisions = self.changed.subscribe();
        let log = self.head.clone();
        let mut watcher = SubscriptionWatcher::new(*revisions.borrow_and_update(), log.borrow().epoch);
        let mut failing = false;
        loop {
            match Box::pin(self.round(&mut watcher, &revisions, &log)).await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "subscriptions cannot be looked at now; this is tried again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => continue,
                        () = stop.cancelled() => return,
                    }
                }
            }
            // Without subscriptions appends cost nothing here.
            let next = match watcher.interests.is_empty() {
                true => None,
                false => self.store.next_due_subscription().await.ok().flatten(),
            };
            let wait = next.map_or(LOOK_LEAST, |at| {
                Duration::from_millis(at.saturating_sub(unix_millis()).max(1).unsigned_abs()).min(LOOK_LEAST)
            });
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => watcher.unseen.take(&change),
                    Err(broadcast::error::RecvError::Lagged(_)) => watcher.unseen.unknown = true,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                // The round reads the revision itself.
                _ = revisions.changed() => {}
                () = tokio::time::sleep(wait) => watcher.stale = true,
                () = stop.cancelled() => return,
            }
            watcher.unseen.drain(&mut changes);
        }
    }

    /// Does all that is due. What fails is left in the watcher for the next round.
    async fn round(
        self: &Arc<Self>,
        watcher: &mut SubscriptionWatcher,
        revisions: &watch::Receiver<Revision>,
        log: &watch::Receiver<Head>,
    ) -> Result<(), Refusal> {
        let epoch = log.borrow().epoch;
        if watcher.epoch != epoch {
            // The database went back in time, or is another one, and so are its keys, subscriptions and streams.
            self.keys.store(Arc::new(keys(&*self.store).await?));
            (watcher.stale, watcher.unseen.unknown, watcher.epoch) = (true, true, epoch);
        }
        // In this order: a subscription is saved and counted before a look at it is requested, and before the watcher
        // sees a change of a stream that was appended to for it.
        let requested =
            std::mem::take(&mut *self.requested_looks.lock().unwrap_or_else(PoisonError::into_inner));
        let revision = *revisions.borrow();
        watcher.unseen.unknown |= requested.all;
        for (id, moved) in requested.moved {
            watcher.pending.entry(id).or_default().here.extend(moved);
        }
        if watcher.stale || watcher.unseen.unknown || watcher.revision.interests != revision.interests {
            watcher.interests = self.interests().await?;
            watcher.stale = false;
        }
        watcher.revision = revision;
        if watcher.interests.is_empty() {
            watcher.unseen = UnseenChanges::default();
            watcher.pending.clear();
            return Ok(());
        }
        if watcher.unseen.unknown {
            let mut after = None;
            loop {
                let page = self.streams.list_streams(after.as_ref(), LIST_PAGE).await?;
                let concerns =
                    |path: &&StreamPath| watcher.interests.iter().any(|interest| interest.concerns(path));
                watcher.unseen.moved.extend(page.iter().filter(concerns).cloned());
                if page.len() < LIST_PAGE {
                    break;
                }
                after = page.last().cloned();
            }
            watcher.unseen.unknown = false;
        }
        watcher.distribute();
        self.look_at_pending(watcher).await?;
        self.due().await
    }

    /// Looks at the subscriptions that must be looked at. One that fails is looked at again in the next round.
    async fn look_at_pending(self: &Arc<Self>, watcher: &mut SubscriptionWatcher) -> Result<(), Refusal> {
        let ids: Vec<String> = watcher.pending.keys().cloned().collect();
        let mut failures = Vec::new();
        for id in ids {
            let Some(look) = watcher.pending.get(&id) else { continue };
            let gone: Vec<&StreamPath> = look.gone.iter().collect();
            let here: Vec<&StreamPath> = look.here.iter().collect();
            match self.look(&id, &gone, &here, look.announce).await {
                Ok(changed) => {
                    watcher.stale |= changed;
                    watcher.pending.remove(&id);
                }
                Err(error) => failures.push(error),
            }
            if failures.len() >= FAILURES_MOST {
                break;
            }
        }
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    async fn interests(&self) -> Result<Vec<Interest>, Refusal> {
        let all = self.store.subscriptions().await?;
        let readable =
            all.iter().filter_map(|stored| parse(stored).ok().map(|found| (stored.id.clone(), found)));
        Ok(readable
            .map(|(id, found)| Interest {
                id,
                pattern: found.configuration.pattern.clone(),
                linked: found.links().collect(),
                unannounced: found.configuration.wake_stream.clone().filter(|_| found.is_unannounced()),
            })
            .collect())
    }

    /// Links what a pattern newly matches, forgets what is gone, and wakes if something waits; returns whether any link
    /// has changed.
    async fn look(
        self: &Arc<Self>,
        id: &str,
        gone: &[&StreamPath],
        here: &[&StreamPath],
        announce: bool,
    ) -> Result<bool, Refusal> {
        // Linked first, and the tails are read after that.
        let most = self.most_streams;
        let linked = self.change(id, |subscription, _, _| {
            let mut changed = false;
            for path in gone {
                changed |= subscription.follows(path);
                subscription.forget(path);
            }
            // These streams were recreated after they were gone.
            for path in here {
                let pattern = subscription.configuration.pattern.as_ref();
                let matches = pattern.is_some_and(|pattern| glob::matches(pattern, path.as_str()));
                if matches && !subscription.follows(path) {
                    match subscription.link(path, false, StreamOffset::START, most) {
                        Ok(()) => changed = true,
                        Err(error) => {
                            tracing::warn!(subscription = id, stream = %path, %error, "not followed");
                        }
                    }
                }
            }
            Ok(changed)
        });
        let changed = match linked.await {
            Ok((.., changed)) => changed,
            Err(Refusal::NotFound) => return Ok(true),
            Err(error) => return Err(error),
        };
        self.wake_if_pending(id, announce).await?;
        Ok(changed)
    }

    /// Wakes a subscription if something waits for it and no worker has it; `announce`: also when the wake that is under
    /// way could not be announced before.
    async fn wake_if_pending(self: &Arc<Self>, id: &str, announce: bool) -> Result<(), Refusal> {
        let woken = self.change(id, |subscription, tails, now| {
            let again = announce && subscription.is_unannounced();
            Ok(subscription.wake(tails, now) || again)
        });
        match woken.await {
            Ok((.., true)) => {
                self.announce(id).await;
                Ok(())
            }
            Ok((.., false)) | Err(Refusal::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends leases that are over, and announces wakes again.
    async fn due(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut failure = None;
        for stored in self.store.due_subscriptions(unix_millis(), DUE_AT_ONCE).await? {
            let id = stored.id;
            // It is still queued: the receiver had no chance to be late.
            let queued = self.is_queued(&id);
            let what = self.change(&id, |subscription, tails, now| {
                if queued {
                    subscription.postpone(now, self.webhook_millis());
                    return Ok(false);
                }
                let ended = subscription.expire(now);
                let retry = !ended && subscription.retry(now);
                Ok(if ended { subscription.wake(tails, now) } else { retry })
            });
            match what.await {
                Ok((.., true)) => self.announce(&id).await,
                Ok((.., false)) | Err(Refusal::NotFound) => {}
                // The others are due, too.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
