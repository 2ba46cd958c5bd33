//! How servers notify each other of changes of streams. Each sends notifications after its commits, which say which
//! stream reaches how far, so that no server has to ask; changes that happen meanwhile are sent in one batch. A
//! notification may be lost with the server that had to send it, or with a connection. So each writer counts its
//! commits in the database, in the commits themselves, and its notifications say which of them they cover: a server
//! that misses one then knows that something has happened, and all of its readers look.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bourn_protocol::{Seq, StreamPath};
use sqlx::Row;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use crate::databases::postgres::Inner;
use crate::databases::postgres::connections::{Db, statement};
use crate::streams::{Segment, StreamChange};

/// The channel of the notifications.
pub(in super::super) const CHANNEL: &str = "bourn_streams";
/// Commits whose changes are kept for listeners; a listener that falls further behind has to assume that any stream has
/// changed.
const CHANGES_KEPT: usize = 1_024;
/// Changes that are sent one by one; where more have gathered, the other servers only learn that any stream may have
/// changed.
const TOLD_MOST: usize = 1_024;
/// Maximum size in bytes of a notification, within PostgreSQL's 8 000.
const NOTIFICATION_MAX: usize = 7_900;
/// Lineages of forks that are kept in memory.
const LINEAGES_MOST: usize = 10_000;

/// The state of stored streams that the storage and its tasks share.
#[derive(Debug)]
pub(in super::super) struct Stored {
    changes: broadcast::Sender<Arc<[StreamChange]>>,
    /// The name of this server in its notifications.
    server: u64,
    owed: Mutex<Unsent>,
    ring: Notify,
    heard: Mutex<HashMap<i64, WriterCommits>>,
    own: Mutex<HashSet<i64>>,
    lineages: Mutex<HashMap<u64, Arc<[Segment]>>>,
    clock: Clock,
}

/// What has not been sent to the other servers yet.
#[derive(Debug, Default)]
struct Unsent {
    /// The range of commits of each writer.
    commits: HashMap<i64, (i64, i64)>,
    changes: Vec<StreamChange>,
    /// The index of each stream's last move in `changes`.
    moves: HashMap<u64, usize>,
    unknown: bool,
}

/// What is known of the commits of another server's writer.
#[derive(Debug, Default)]
struct WriterCommits {
    /// Notifications have covered the commits up to this one.
    told: i64,
    /// The writer's count at the last look.
    seen: i64,
}

/// The counter of one writer's commits.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) writer: i64,
    last: i64,
}

impl Counter {
    /// The number of the next commit.
    pub(super) fn next(&self) -> i64 {
        self.last + 1
    }

    /// The commit is done, or may be: its number is not used again.
    fn done(&mut self) -> (i64, i64) {
        self.last += 1;
        (self.writer, self.last)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unsent {
    fn add(&mut self, change: &StreamChange) {
        let mut change = change.clone();
        if let StreamChange::Moved { id, fresh, .. } = &mut change {
            // The other servers read it from the database.
            *fresh = Arc::default();
            if let Some(&at) = self.moves.get(id) {
                self.changes[at] = change;
                return;
            }
            self.moves.insert(*id, self.changes.len());
        }
        self.unknown |= change == StreamChange::Unknown;
        self.changes.push(change);
        if self.changes.len() > TOLD_MOST {
            self.unknown = true;
        }
        if self.unknown {
            self.changes.clear();
            self.moves.clear();
        }
    }

    fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.changes.is_empty() && !self.unknown
    }

    /// The changes and commits as notifications.
    fn write(&self, server: u64) -> Vec<String> {
        let commits = self.commits.iter().map(|(writer, (from, to))| format!("c {writer} {from} {to}"));
        let unknown = self.unknown.then(|| "u".to_owned());
        let mut notifications = Vec::new();
        let mut text = format!("{server}");
        for line in commits.chain(unknown).chain(self.changes.iter().map(write)) {
            if text.len() + 1 + line.len() > NOTIFICATION_MAX {
                notifications.push(std::mem::replace(&mut text, format!("{server}")));
            }
            text.push('\n');
            text.push_str(&line);
        }
        notifications.push(text);
        notifications
    }
}

fn write(change: &StreamChange) -> String {
    match change {
        StreamChange::Moved { id, path, tail, closed, .. } => {
            format!("m {id} {tail} {} {path}", u8::from(*closed))
        }
        StreamChange::Deleted { id, path } => format!("d {id} {path}"),
        StreamChange::Unknown => "u".into(),
    }
}

/// A line of a notification, unless it is a commit's.
fn read(line: &str) -> Option<StreamChange> {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    match kind {
        "m" => {
            let mut parts = rest.splitn(4, ' ');
            let id = parts.next()?.parse().ok()?;
            let tail = Seq::new(parts.next()?.parse().ok()?)?;
            let closed = parts.next()? == "1";
            let path = StreamPath::new(parts.next()?).ok()?;
            Some(StreamChange::Moved { id, path, tail, closed, fresh: Arc::default() })
        }
        "d" => {
            let (id, path) = rest.split_once(' ')?;
            Some(StreamChange::Deleted { id: id.parse().ok()?, path: StreamPath::new(path).ok()? })
        }
        // Also a line that only a newer server knows.
        _ => Some(StreamChange::Unknown),
    }
}

impl Stored {
    pub(in super::super) fn new() -> Stored {
        Stored {
            changes: broadcast::Sender::new(CHANGES_KEPT),
            server: rand::random(),
            owed: Mutex::default(),
            ring: Notify::new(),
            heard: Mutex::default(),
            own: Mutex::default(),
            lineages: Mutex::default(),
            clock: Clock::new(),
        }
    }

    /// Now, in Unix milliseconds, by the database's clock.
    pub(super) fn now(&self) -> i64 {
        self.clock.now()
    }

    /// A writer of this server's.
    pub(super) fn writer(&self) -> Counter {
        let writer = rand::random::<i64>() | 1;
        locked(&self.own).insert(writer);
        Counter { writer, last: 0 }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<[StreamChange]>> {
        self.changes.subscribe()
    }

    /// Any stream may have changed: all readers of this server look.
    pub(in super::super) fn doubt(&self) {
        locked(&self.lineages).clear();
        locked(&self.heard).clear();
        self.tell_here(vec![StreamChange::Unknown]);
    }

    fn tell_here(&self, changes: Vec<StreamChange>) {
        if !changes.is_empty() {
            // There may be no receiver.
            let _ = self.changes.send(changes.into());
        }
    }

    /// Notifies this server's readers and the other servers of a commit.
    pub(super) fn committed(&self, counter: &mut Counter, changes: Vec<StreamChange>) {
        let (writer, commit) = counter.done();
        {
            let mut owed = locked(&self.owed);
            owed.commits.entry(writer).or_insert((commit, commit)).1 = commit;
            for change in &changes {
                owed.add(change);
            }
        }
        self.ring.notify_one();
        self.tell_here(changes);
    }

    /// Notes a failed commit that may have been done all the same.
    pub(super) fn unsure(&self, counter: &mut Counter) {
        self.committed(counter, vec![StreamChange::Unknown]);
    }

    /// Takes another server's notification.
    pub(in super::super) fn hear(&self, notification: &str) {
        let mut lines = notification.lines();
        if lines.next() == Some(&*self.server.to_string()) {
            return;
        }
        let mut changes = Vec::new();
        for line in lines {
            match line.strip_prefix("c ") {
                Some(commits) => changes.extend(self.hear_of_commits(commits)),
                None => changes.push(read(line).unwrap_or(StreamChange::Unknown)),
            }
        }
        self.tell_here(changes);
    }

    /// Takes the commits that the rest of the notification covers; returns `Unknown` if a notification before it was
    /// lost.
    fn hear_of_commits(&self, text: &str) -> Option<StreamChange> {
        let mut numbers = text.split(' ').map(str::parse::<i64>);
        let (Some(Ok(writer)), Some(Ok(from)), Some(Ok(to))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return Some(StreamChange::Unknown);
        };
        let mut heard = locked(&self.heard);
        let known = heard.entry(writer).or_default();
        let lost = from > known.told + 1;
        known.told = known.told.max(to);
        lost.then_some(StreamChange::Unknown)
    }

    /// Looks how many commits the other servers have made. Notifications should have covered those that were there at
    /// the last look by now; if no connection has listened since, they should have covered all.
    pub(in super::super) async fn look(&self, db: &Db, hears: bool) -> Result<(), sqlx::Error> {
        let asked = Instant::now();
        let read = async {
            let mut reading = db.single().await?;
            let rows = statement(
                "SELECT id, commits, (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM bourn.stream_writers",
            )
            .fetch_all(reading.connection())
            .await?;
            reading.commit().await?;
            Ok(rows)
        };
        let rows = db.within(read).await?;
        if let Some(row) = rows.first() {
            self.clock.read(row.try_get(2)?, asked);
        }
        let mut there = HashMap::new();
        for row in rows {
            there.insert(row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?);
        }
        if self.count(&there, hears) {
            self.tell_here(vec![StreamChange::Unknown]);
        }
        Ok(())
    }

    /// Counts all commits so far as covered.
    pub(in super::super) async fn begin(&self, db: &Db) -> Result<(), sqlx::Error> {
        // There is no receiver yet.
        self.look(db, false).await
    }

    /// Takes the writers' counts; returns whether commits were missed.
    fn count(&self, there: &HashMap<i64, i64>, hears: bool) -> bool {
        let own = locked(&self.own);
        let mut heard = locked(&self.heard);
        heard.retain(|writer, _| there.contains_key(writer));
        let mut missed = false;
        for (&writer, &commits) in there.iter().filter(|(writer, _)| !own.contains(writer)) {
            let known = heard.entry(writer).or_default();
            let expected = if hears { known.seen } else { commits };
            if expected > known.told {
                missed = true;
                known.told = commits;
            }
            known.seen = commits;
        }
        missed
    }

    /// Notifies the other servers until the server stops and its writers have ended.
    pub(super) async fn run(&self, inner: &Inner, stop: &CancellationToken, writers: &TaskTracker) {
        loop {
            let stopped = tokio::select! {
                () = self.ring.notified() => false,
                () = stop.cancelled() => true,
            };
            if stopped {
                writers.wait().await;
            }
            if let Err(failure) = self.tell(&inner.db).await {
                // The other servers find out by counting that they have missed something.
                tracing::debug!(%failure, "cannot notify the other servers");
            }
            if stopped {
                return;
            }
        }
    }

    async fn tell(&self, db: &Db) -> Result<(), sqlx::Error> {
        let owed = std::mem::take(&mut *locked(&self.owed));
        if owed.is_empty() {
            return Ok(());
        }
        let telling = async {
            let mut telling = db.single().await?;
            statement("SELECT pg_notify($1, text) FROM unnest($2::text[]) text")
                .bind(CHANNEL)
                .bind(owed.write(self.server))
                .execute(telling.connection())
                .await?;
            telling.commit().await
        };
        db.within(telling).await
    }

    /// The lineage of a fork, read if it is not known.
    pub(super) async fn lineage(
        &self,
        id: u64,
        read: impl AsyncFnOnce() -> Result<Arc<[Segment]>, sqlx::Error>,
    ) -> Result<Arc<[Segment]>, sqlx::Error> {
        if let Some(known) = locked(&self.lineages).get(&id) {
            return Ok(known.clone());
        }
        let found = read().await?;
        let mut lineages = locked(&self.lineages);
        if lineages.len() >= LINEAGES_MOST {
            lineages.clear();
        }
        lineages.insert(id, found.clone());
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(id: u64, tail: u64, path: &str) -> StreamChange {
        let (path, tail) = (StreamPath::new(path).unwrap(), Seq::new(tail).unwrap());
        StreamChange::Moved { id, path, tail, closed: false, fresh: Arc::default() }
    }

    /// Everything a server has heard.
    fn heard(changes: &mut broadcast::Receiver<Arc<[StreamChange]>>) -> Vec<StreamChange> {
        std::iter::from_fn(|| changes.try_recv().ok()).flat_map(|some| some.to_vec()).collect()
    }

    fn pass_on(from: &Stored, to: &Stored) {
        for notification in std::mem::take(&mut *locked(&from.owed)).write(from.server) {
            assert!(notification.len() <= NOTIFICATION_MAX);
            from.hear(&notification);
            to.hear(&notification);
        }
    }

    #[test]
    fn what_one_server_tells_the_other_hears_and_itself_ignores() {
        let (one, two) = (Stored::new(), Stored::new());
        let (mut here, mut there) = (one.subscribe(), two.subscribe());
        let mut counter = one.writer();
        let deleted = StreamChange::Deleted { id: 1, path: StreamPath::new("a b/c").unwrap() };
        one.committed(&mut counter, vec![moved(1, 5, "a b/c")]);
        one.committed(&mut counter, vec![moved(1, 9, "a b/c"), moved(2, 1, "ä")]);
        one.committed(&mut counter, vec![deleted.clone()]);
        assert_eq!(heard(&mut here).len(), 4);
        pass_on(&one, &two);
        assert_eq!(heard(&mut there), [moved(1, 9, "a b/c"), moved(2, 1, "ä"), deleted]);
        assert!(heard(&mut here).is_empty());
        // More than fits one notification, and then more than is sent one by one.
        let path = "x".repeat(1_000);
        one.committed(&mut counter, (0..50).map(|id| moved(id, 1, &path)).collect());
        pass_on(&one, &two);
        assert_eq!(heard(&mut there).len(), 50);
        one.committed(&mut counter, (0..2_000).map(|id| moved(id, 2, "y")).collect());
        pass_on(&one, &two);
        assert_eq!(heard(&mut there), [StreamChange::Unknown]);
    }

    #[test]
    fn what_was_not_told_is_missed() {
        let (one, two) = (Stored::new(), Stored::new());
        let mut there = two.subscribe();
        let mut counter = one.writer();
        let lose = |counter: &mut Counter| {
            one.committed(counter, vec![moved(1, 1, "a")]);
            std::mem::take(&mut *locked(&one.owed));
        };
        one.committed(&mut counter, vec![moved(1, 1, "a")]);
        pass_on(&one, &two);
        heard(&mut there);
        lose(&mut counter);
        // The next notification shows that one is missing.
        one.committed(&mut counter, vec![moved(1, 3, "a")]);
        pass_on(&one, &two);
        assert_eq!(heard(&mut there), [StreamChange::Unknown, moved(1, 3, "a")]);
        // Without another, counting shows it: it may still be on its way at the first look, not at the second.
        let there_are = |commits| HashMap::from([(counter.writer, commits)]);
        assert!(!two.count(&there_are(3), true) && !two.count(&there_are(4), true));
        assert!(two.count(&there_are(5), true), "the fourth was never told");
        assert!(!two.count(&there_are(5), true), "that is known now");
        assert!(two.count(&there_are(6), false), "nobody listens");
        assert!(!one.count(&there_are(9), false), "one's own are not missed");
    }

    #[test]
    fn what_makes_no_sense_makes_everybody_look() {
        let stored = Stored::new();
        let mut changes = stored.subscribe();
        for odd in ["x\nm 1", "x\nd", "x\nz 7", "x\nc 1 2", "x\nm 1 2 0 a//b"] {
            stored.hear(odd);
            assert_eq!(heard(&mut changes), [StreamChange::Unknown], "{odd}");
        }
    }
}
