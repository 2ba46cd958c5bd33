//! A reader that drops and resumes at random, with whichever server and in whichever way, and keeps account of what it
//! was given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::site::{PAGES_PATH, Site, state};
use crate::support::{Client, Event, materialize_with_unknown_ends};

/// How long a reader may take to its end.
const LIMIT: Duration = Duration::from_secs(90);

/// How a reader reads.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    CatchUp,
    LongPoll,
    Sse,
}

/// A reader at work.
pub struct Reader {
    end: watch::Sender<Option<u64>>,
    task: JoinHandle<Seen>,
}

/// What a reader was given.
#[derive(Debug, Default)]
pub struct Seen {
    pub messages: Vec<Value>,
    /// The last seq of each delivery.
    ends: BTreeSet<u64>,
    pub resumed: usize,
}

impl Reader {
    /// Begins to read an entity's stream from its start.
    pub fn start(servers: &[Client], stream: &str, ways: &[Way], seed: u64) -> Reader {
        let (end, ended) = watch::channel(None);
        let read = read(servers.into(), stream.to_owned(), ways.into(), StdRng::seed_from_u64(seed), ended);
        Reader { end, task: tokio::spawn(read) }
    }

    /// Reads on to this seq and gives everything that was read.
    pub async fn finish(self, seq: u64) -> Seen {
        self.end.send(Some(seq)).unwrap();
        self.task.await.unwrap()
    }
}

/// Readers of the pages, of every kind, on all servers, and what must hold of them and of the log at the end.
pub struct Witnesses(Vec<Reader>);

impl Witnesses {
    pub fn start(servers: &[Client], seed: u64) -> Witnesses {
        let ways = [
            vec![Way::CatchUp],
            vec![Way::LongPoll],
            vec![Way::Sse],
            vec![Way::Sse],
            vec![Way::CatchUp, Way::LongPoll, Way::Sse],
        ];
        let start = |(i, ways): (usize, &Vec<Way>)| Reader::start(servers, PAGES_PATH, ways, seed + i as u64);
        Witnesses(ways.iter().enumerate().map(start).collect())
    }

    pub async fn agree(self, site: &Site, servers: &[Client]) {
        site.captured().await;
        site.assert_log_is_sound();
        let table = site.table("pages", "id");
        let end = site.sql("SELECT max(seq) FROM bourn.activities").parse().unwrap();
        for reader in self.0 {
            let seen = reader.finish(end).await;
            assert!(seen.resumed > 5, "it resumed {} times", seen.resumed);
            seen.assert_complete(site, "page");
            assert_eq!(seen.state(), table, "what a reader was given adds up to the table");
        }
        for server in servers {
            assert_eq!(state(server, PAGES_PATH).await, table, "the stream adds up to the table");
        }
    }
}

async fn read(
    servers: Arc<[Client]>,
    stream: String,
    ways: Arc<[Way]>,
    mut random: StdRng,
    end: watch::Receiver<Option<u64>>,
) -> Seen {
    let mut seen = Seen::default();
    let mut offset = "-1".to_owned();
    let mut told_at = None;
    loop {
        if let Some(end) = *end.borrow() {
            if seen.last() >= end {
                return seen;
            }
            let told_at = *told_at.get_or_insert_with(Instant::now);
            assert!(told_at.elapsed() < LIMIT, "a reader never comes to {end}: it stands at {offset}");
        }
        let server = &servers[random.random_range(0..servers.len())];
        let done = match ways[random.random_range(0..ways.len())] {
            Way::CatchUp => once(server, &format!("{stream}?offset={offset}"), &mut offset, &mut seen).await,
            Way::LongPoll => {
                let path = format!("{stream}?offset={offset}&live=long-poll");
                once(server, &path, &mut offset, &mut seen).await
            }
            Way::Sse => events(server, &stream, &mut offset, &mut seen, &mut random).await,
        };
        seen.resumed += 1;
        if !done {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn once(server: &Client, path: &str, offset: &mut String, seen: &mut Seen) -> bool {
    match server.try_send(Method::GET, path, &[], Bytes::new()).await {
        Ok(answer) if answer.status == 200 => {
            let messages = answer.messages();
            // At the tail there is no hurry to ask again.
            let some = !messages.is_empty();
            seen.take(messages);
            *offset = answer.next_offset();
            some
        }
        // The database may be away, or nothing has come.
        Ok(answer) => {
            assert!(matches!(answer.status, 204 | 503), "{path}: {} {}", answer.status, answer.text());
            false
        }
        Err(_) => false,
    }
}

async fn events(
    server: &Client,
    stream: &str,
    offset: &mut String,
    seen: &mut Seen,
    random: &mut StdRng,
) -> bool {
    let path = format!("{stream}?offset={offset}&live=sse");
    let Ok(mut events) = server.try_events(&path, &[]).await else { return false };
    if !events.head.starts_with("http/1.1 200") {
        assert!(events.head.starts_with("http/1.1 503"), "{path}: {}", events.head);
        return false;
    }
    let mut batch = None;
    for _ in 0..random.random_range(2..20) {
        let patience = Duration::from_millis(random.random_range(50..500));
        match events.try_next(patience).await {
            Some(Event::Data(messages)) => batch = Some(messages),
            Some(Event::Control { id, .. }) => {
                // The place stands on the control event: what was cut off before it comes again.
                seen.take(batch.take().unwrap_or_default());
                *offset = id;
            }
            Some(Event::Retry(_) | Event::Heartbeat | Event::Text(_) | Event::Auth(_)) => {}
            Some(Event::End | Event::Cut) | None => break,
        }
    }
    true
}

impl Seen {
    fn take(&mut self, messages: Vec<Value>) {
        let Some(last) = messages.last() else { return };
        self.ends.insert(seq(last));
        self.messages.extend(messages);
    }

    fn last(&self) -> u64 {
        self.messages.last().map_or(0, seq)
    }

    pub fn state(&self) -> BTreeMap<String, Value> {
        materialize_with_unknown_ends(&self.messages)
    }

    /// Asserts that this is what the log has of an entity type: each change once, in order, transactions whole.
    pub fn assert_complete(&self, site: &Site, entity_type: &str) {
        let sql = format!(
            "SELECT seq, last >= 2 FROM bourn.activities WHERE entity_type = '{entity_type}' ORDER BY seq"
        );
        let log = site.sql(&sql);
        let log: Vec<(u64, bool)> = log
            .lines()
            .map(|line| line.split_once('|').unwrap())
            .map(|(seq, last)| (seq.parse().unwrap(), last == "t"))
            .collect();
        let seqs: Vec<u64> = self.messages.iter().map(seq).collect();
        assert_eq!(seqs, log.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), "each once, in order");
        let ends: BTreeSet<u64> = log.iter().filter(|(_, last)| *last).map(|(seq, _)| *seq).collect();
        let torn: Vec<_> = self.ends.difference(&ends).collect();
        assert!(torn.is_empty(), "deliveries that end inside a transaction: {torn:?}");
        for message in &self.messages {
            let marked = message["headers"]["last"] == true;
            assert_eq!(marked, ends.contains(&seq(message)), "the end of a transaction: {message}");
        }
    }
}

fn seq(message: &Value) -> u64 {
    message["headers"]["seq"].as_u64().unwrap()
}
