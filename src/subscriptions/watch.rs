//! What happens to subscriptions by itself: appends wake them, leases end, webhooks are tried again. One task does it,
//! woken by the storage's changes and by the clock. It keeps in mind only which subscription wants to hear of which
//! stream; the database has the rest.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bourn_protocol::stored::glob;
use bourn_protocol::{StreamOffset, StreamPath};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{Delivery, LIST_PAGE, Refusal, Subscriptions, parse, unix_millis};
use crate::storage::streams::StreamChange;

/// The longest sleep: another server may have made a subscription, or put something on the calendar.
const LOOK_LEAST: Duration = Duration::from_secs(1);
/// Subscriptions that are looked at for the clock's sake at once.
const DUE_AT_ONCE: usize = 256;

/// Which streams a subscription wants to hear of.
struct Interest {
    id: String,
    pattern: Option<String>,
    linked: HashSet<StreamPath>,
}

impl Interest {
    fn concerns(&self, path: &StreamPath) -> bool {
        self.linked.contains(path)
            || self.pattern.as_ref().is_some_and(|pattern| glob::matches(pattern, path.as_str()))
    }
}

/// What has happened since it was last looked.
#[derive(Default)]
struct News {
    moved: BTreeSet<StreamPath>,
    deleted: BTreeSet<StreamPath>,
    /// Anything may have.
    unknown: bool,
}

impl News {
    fn take(&mut self, changes: &[StreamChange]) {
        for change in changes {
            match change {
                StreamChange::Moved { path, .. } => {
                    // It may have been deleted and made anew at once.
                    self.moved.insert(path.clone());
                }
                StreamChange::Deleted { path, .. } => {
                    self.moved.remove(path);
                    self.deleted.insert(path.clone());
                }
                StreamChange::Unknown => self.unknown = true,
            }
        }
    }
}

impl Subscriptions {
    /// Does what is due until it is told to stop, and ends what it has begun. `changes` was subscribed to before anybody could
    /// append.
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
        // What happened while nobody ran is found by looking at everything once.
        let mut news = News { unknown: true, ..News::default() };
        let mut interests = Vec::new();
        let mut stale = true;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match Box::pin(self.round(&mut news, &mut interests, &mut stale)).await {
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, "subscriptions cannot be looked at now"),
            }
            // Where nobody subscribes, appends cost nothing here.
            let next = match interests.is_empty() {
                true => None,
                false => self.storage.next_due_subscription().await.ok().flatten(),
            };
            let wait = next.map_or(LOOK_LEAST, |at| {
                Duration::from_millis(at.saturating_sub(unix_millis()).max(1).unsigned_abs()).min(LOOK_LEAST)
            });
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) => news.take(&change),
                    Err(broadcast::error::RecvError::Lagged(_)) => news.unknown = true,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = &mut changed => stale = true,
                () = tokio::time::sleep(wait) => stale = true,
                () = stop.cancelled() => return,
            }
            while let Ok(change) = changes.try_recv() {
                news.take(&change);
            }
        }
    }

    async fn round(
        self: &Arc<Self>,
        news: &mut News,
        interests: &mut Vec<Interest>,
        stale: &mut bool,
    ) -> Result<(), Refusal> {
        if *stale || news.unknown {
            *interests = self.interests().await?;
            *stale = false;
        }
        if interests.is_empty() {
            *news = News::default();
            return Ok(());
        }
        if std::mem::take(&mut news.unknown) {
            let mut after = None;
            loop {
                let page = self.storage.list_streams(after.as_ref(), LIST_PAGE).await?;
                let concerns = |path: &&StreamPath| interests.iter().any(|interest| interest.concerns(path));
                news.moved.extend(page.iter().filter(concerns).cloned());
                if page.len() < LIST_PAGE {
                    break;
                }
                after = page.last().cloned();
            }
            self.remind(interests).await?;
        }
        let News { moved, deleted, .. } = std::mem::take(news);
        for interest in interests.iter_mut() {
            let gone: Vec<&StreamPath> =
                deleted.iter().filter(|path| interest.linked.contains(*path)).collect();
            let here: Vec<&StreamPath> = moved.iter().filter(|path| interest.concerns(path)).collect();
            if gone.is_empty() && here.is_empty() {
                continue;
            }
            if self.look(&interest.id, &gone, &here).await? {
                *stale = true;
            }
            interest.linked.extend(here.into_iter().cloned());
        }
        self.due().await
    }

    async fn interests(&self) -> Result<Vec<Interest>, Refusal> {
        let all = self.storage.subscriptions().await?;
        let readable =
            all.iter().filter_map(|stored| parse(stored).ok().map(|found| (stored.id.clone(), found)));
        Ok(readable
            .map(|(id, found)| Interest {
                id,
                pattern: found.configuration.pattern.clone(),
                linked: found.links().collect(),
            })
            .collect())
    }

    /// A wake that was written nowhere, because a server died in between, is written again.
    async fn remind(self: &Arc<Self>, interests: &[Interest]) -> Result<(), Refusal> {
        for interest in interests {
            let Some((subscription, _)) = self.load(&interest.id).await? else { continue };
            let waiting = subscription.wake.is_some() && subscription.due_at().is_none();
            if waiting && subscription.configuration.delivery() == Delivery::PullWake {
                self.write_wake(&interest.id, &subscription).await;
            }
        }
        Ok(())
    }

    /// Links what a pattern has newly found, forgets what is gone, and wakes if something waits; says whether anything
    /// about the links has changed.
    async fn look(
        self: &Arc<Self>,
        id: &str,
        gone: &[&StreamPath],
        here: &[&StreamPath],
    ) -> Result<bool, Refusal> {
        // Linked first, and the tails are read after that.
        let most = self.most_streams;
        let linked = self.change(id, |subscription, _, _| {
            let mut changed = false;
            for path in gone {
                changed |= subscription.follows(path);
                subscription.forget(path);
            }
            for path in here.iter().filter(|path| !gone.contains(path)) {
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
        self.wake_if_pending(id).await?;
        Ok(changed)
    }

    async fn wake_if_pending(self: &Arc<Self>, id: &str) -> Result<(), Refusal> {
        match self.change(id, |subscription, tails, now| Ok(subscription.wake(tails, now))).await {
            Ok((.., true)) => {
                self.announce(id).await;
                Ok(())
            }
            Ok((.., false)) | Err(Refusal::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends leases that are over, and tries webhooks again.
    async fn due(self: &Arc<Self>) -> Result<(), Refusal> {
        for stored in self.storage.due_subscriptions(unix_millis(), DUE_AT_ONCE).await? {
            let id = stored.id;
            let what = self.change(&id, |subscription, tails, now| {
                let ended = subscription.expire(now);
                let retry = !ended && subscription.retry(now);
                Ok(if ended { subscription.wake(tails, now) } else { retry })
            });
            match what.await {
                Ok((.., true)) => self.announce(&id).await,
                Ok((.., false)) | Err(Refusal::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
