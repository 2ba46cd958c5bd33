//! Readers of one stream each, of every kind: through the cache, by long-poll, by event stream, and as StreamDB does it
//! (list, then follow, then merge). They drop and resume at random, and keep account of what they were given.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::cache::Cache;
use crate::features::on;
use crate::journal::{Journal, shown};
use crate::support::{Answer, Client, Event};

/// The pause of a reader that got nothing or no answer.
const PAUSE: Duration = Duration::from_millis(30);
/// How long a request may go without an answer before the reader tries again.
const SILENCE: Duration = Duration::from_secs(15);
/// Past it a transaction may come in parts.
const TRANSACTION_BYTES: usize = 8 << 20;
/// Messages that are remembered for the story.
const REMEMBERED: usize = 2_000;
/// Rows on a page of a list.
const PAGE: usize = 10;

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    CatchUp,
    LongPoll,
    Sse,
    /// List first, follow then by event stream; rows are merged.
    ListThenFollow,
    /// Another way at each resumption.
    Mixed,
}

/// What all readers share.
#[derive(Debug)]
pub struct ReadersState {
    pub cache: Cache,
    pub journal: Arc<Journal>,
    /// Whether the first message about a row must be its creation.
    pub strict_beginning: bool,
    pub stop: AtomicBool,
}

/// A reader at work.
pub struct Reader {
    pub stream: String,
    pub way: Way,
    pub state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// What a reader has.
#[derive(Debug, Default)]
pub struct State {
    pub rows: BTreeMap<String, Value>,
    pub offset: String,
    last: u64,
    /// Keys that had a message.
    known: HashSet<String>,
    /// When the list was read, and what it said.
    listed: String,
    recent: VecDeque<(String, String)>,
}

impl State {
    /// The last messages about a row.
    pub fn story(&self, key: &str) -> String {
        let about: Vec<String> = self
            .recent
            .iter()
            .filter(|(about, _)| about == key)
            .map(|(_, message)| format!("  {message}"))
            .collect();
        format!("{}\n{}", self.listed, about[about.len().saturating_sub(6)..].join("\n"))
    }
}

impl Reader {
    /// Begins to read a stream (a path, perhaps with a scope).
    pub fn start(
        clients: &[Client],
        stream: String,
        key: &str,
        way: Way,
        seed: u64,
        shared: &Arc<ReadersState>,
    ) -> Reader {
        let state = Arc::new(Mutex::new(State { offset: "-1".into(), ..State::default() }));
        let work = Work {
            clients: clients.to_vec(),
            stream: stream.clone(),
            key: key.to_owned(),
            way,
            random: StdRng::seed_from_u64(seed),
            shared: shared.clone(),
            state: state.clone(),
            cursor: String::new(),
        };
        Reader { stream, way, state, task: tokio::spawn(work.run()) }
    }

    pub async fn finish(self) {
        self.task.await.expect("a reader does not fail");
    }
}

struct Work {
    clients: Vec<Client>,
    stream: String,
    key: String,
    way: Way,
    random: StdRng,
    shared: Arc<ReadersState>,
    state: Arc<Mutex<State>>,
    cursor: String,
}

impl Work {
    async fn run(mut self) {
        if self.way == Way::ListThenFollow {
            while !self.shared.stop.load(Ordering::Relaxed) {
                if self.complete().await && self.list().await {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        while !self.shared.stop.load(Ordering::Relaxed) {
            let client = self.clients[self.random.random_range(0..self.clients.len())].clone();
            let way = match (self.way, self.random.random_range(0..3)) {
                (Way::Mixed, 0) => Way::CatchUp,
                (Way::Mixed, 1) => Way::LongPoll,
                (Way::Mixed | Way::ListThenFollow, _) => Way::Sse,
                (way, _) => way,
            };
            let some = match way {
                Way::CatchUp => self.once(&client, "").await,
                Way::LongPoll => self.once(&client, "&live=long-poll").await,
                _ => self.events(&client).await,
            };
            if !some {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn separator(&self) -> char {
        if self.stream.contains('?') { '&' } else { '?' }
    }

    fn offset(&self) -> String {
        lock(&self.state).offset.clone()
    }

    /// Whether a list can be followed: the table has been compared once.
    async fn complete(&self) -> bool {
        on("list-while-compared") || {
            let asked = self.clients[0].try_send(http::Method::GET, "/ready", &[], bytes::Bytes::new());
            let ready = self.in_time("/ready", asked).await;
            ready.is_some_and(|ready| ready.status == 200 && !ready.text().contains("comparing"))
        }
    }

    /// Reads the whole list, page by page, and stands where its first page says.
    async fn list(&mut self) -> bool {
        let client = self.clients[0].clone();
        let mut path = format!("{}{}limit={PAGE}", self.stream, self.separator());
        let (mut rows, mut offset) = (BTreeMap::new(), None);
        loop {
            let sent = client.try_send(http::Method::GET, &path, &[], bytes::Bytes::new());
            let Some(answer) = self.in_time(&path, sent).await else { return false };
            if answer.status != 200 {
                self.tolerate(&path, &answer);
                return false;
            }
            offset.get_or_insert_with(|| answer.next_offset());
            for row in answer.json().as_array().expect("a list is an array") {
                rows.insert(text(&row[&self.key]), row.clone());
            }
            match next_page(&answer) {
                Some(next) => path = next,
                None => break,
            }
        }
        let mut state = lock(&self.state);
        let offset = offset.unwrap_or_default();
        let at = self.shared.journal.seconds();
        state.listed = format!("  {at:.3} s listed from {offset}: {}", shown(&format!("{:?}", rows.keys())));
        state.known = rows.keys().cloned().collect();
        (state.rows, state.offset) = (rows, offset);
        true
    }

    /// An answer; none if the connection failed or says nothing, as a half-open one does.
    async fn in_time(
        &self,
        path: &str,
        sent: impl Future<Output = Result<Answer, String>>,
    ) -> Option<Answer> {
        let began = self.shared.journal.seconds();
        match tokio::time::timeout(SILENCE, sent).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(_)) => {
                self.shared.journal.count("connections that failed");
                None
            }
            Err(_) => {
                self.shared
                    .journal
                    .trouble(format!("a request is not answered: GET {path} since {began:.3} s"));
                None
            }
        }
    }

    /// Answers that a server in trouble may give.
    fn tolerate(&self, path: &str, answer: &Answer) {
        self.shared.journal.count(&format!("answers {}", answer.status));
        if !matches!(answer.status, 204 | 503 | 429) {
            self.shared.journal.fault(format!("GET {path}: {} {}", answer.status, shown(answer.text())));
        }
    }

    async fn once(&mut self, client: &Client, live: &str) -> bool {
        let offset = self.offset();
        let cursor = match live {
            "" => String::new(),
            _ if self.cursor.is_empty() => String::new(),
            _ => format!("&cursor={}", self.cursor),
        };
        let path = format!("{}{}offset={offset}{live}{cursor}", self.stream, self.separator());
        let sent = self.shared.cache.get(client, &path, &self.shared.journal);
        let Some(answer) = self.in_time(&path, sent).await else { return false };
        if !live.is_empty() {
            self.cursor = answer.header("stream-cursor").to_owned();
        }
        if answer.status != 200 {
            self.tolerate(&path, &answer);
            return false;
        }
        let messages = answer.messages();
        let some = !messages.is_empty();
        self.take(&messages, answer.next_offset());
        some
    }

    async fn events(&mut self, client: &Client) -> bool {
        let offset = self.offset();
        // As a browser does it: the place is in the header, the address is the old one.
        let by_header = offset != "-1" && self.random.random_bool(0.5);
        let from = if by_header { "-1" } else { offset.as_str() };
        let path = format!("{}{}offset={from}&live=sse", self.stream, self.separator());
        let headers: Vec<(&str, &str)> =
            if by_header { vec![("last-event-id", offset.as_str())] } else { vec![] };
        let Ok(mut events) = client.try_events(&path, &headers).await else {
            self.shared.journal.count("connections that failed");
            return false;
        };
        if !events.head.starts_with("http/1.1 200") {
            if !events.head.starts_with("http/1.1 503") && !events.head.starts_with("http/1.1 429") {
                self.shared.journal.fault(format!("GET {path}: {}", shown(&events.head)));
            }
            return false;
        }
        let mut batch: Option<Vec<Value>> = None;
        for _ in 0..self.random.random_range(2..30) {
            let patience = Duration::from_millis(self.random.random_range(50..1_500));
            match events.try_next(patience).await {
                Some(Event::Data(messages)) => {
                    if batch.replace(messages).is_some() {
                        self.shared.journal.fault(format!("{path}: two data events without a control event"));
                    }
                }
                Some(Event::Control { id, .. }) => self.take(&batch.take().unwrap_or_default(), id),
                Some(Event::Retry(_) | Event::Heartbeat | Event::Text(_) | Event::Auth(_)) => {}
                Some(Event::End | Event::Cut) | None => break,
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        true
    }

    fn take(&mut self, messages: &[Value], offset: String) {
        let journal = &self.shared.journal;
        let mut state = lock(&self.state);
        let mut bytes = 0;
        for message in messages {
            let seq = message["headers"]["seq"].as_u64().unwrap_or_default();
            let key = message["key"].as_str().unwrap_or_default().to_owned();
            let told = message.to_string();
            bytes += told.len();
            if seq <= state.last {
                journal.fault(format!("{} {:?}: {seq} after {}", self.stream, self.way, state.last));
            }
            state.last = seq;
            self.shared.cache.message(&self.stream, seq, &told, journal);
            if state.recent.len() >= REMEMBERED {
                state.recent.pop_front();
            }
            state.recent.push_back((key.clone(), shown(&told)));
            let wrong = fold(&mut state.rows, &key, message);
            let first = state.known.insert(key.clone());
            // While a table is compared, a row that the log does not have gets a deletion: a list may have had it.
            let told_in_case = wrong == Some(ENDED_UNKNOWN) && !self.shared.strict_beginning;
            let strict = self.way != Way::ListThenFollow && (!first || self.shared.strict_beginning);
            if let Some(wrong) = wrong.filter(|_| strict && !told_in_case) {
                journal.fault(format!("{} {:?}: {wrong}: {}", self.stream, self.way, shown(&told)));
            }
        }
        if let Some(last) = messages.last() {
            if last["headers"]["last"] != true && bytes < TRANSACTION_BYTES {
                let (seq, way) = (&last["headers"]["seq"], self.way);
                journal
                    .fault(format!("{} {way:?}: a batch ends at {seq}, inside a transaction", self.stream));
            }
            let count = u64::try_from(messages.len()).unwrap_or_default();
            journal.delivered.fetch_add(count, Ordering::Relaxed);
        }
        state.offset = offset;
    }
}

const ENDED_UNKNOWN: &str = "deleted before it was inserted";

/// Takes a message as StreamDB takes it; says what is wrong for a reader that began at the start.
fn fold(rows: &mut BTreeMap<String, Value>, key: &str, message: &Value) -> Option<&'static str> {
    let value = message["value"].clone();
    match message["headers"]["operation"].as_str() {
        Some("insert") => rows.insert(key.to_owned(), value).is_some().then_some("inserted twice"),
        Some("update") => {
            let Some(Value::Object(row)) = rows.get_mut(key) else {
                rows.insert(key.to_owned(), value);
                return Some("updated before it was inserted");
            };
            if let Value::Object(new) = value {
                row.extend(new);
            }
            None
        }
        Some("delete") => rows.remove(key).is_none().then_some(ENDED_UNKNOWN),
        _ => Some("an unknown operation"),
    }
}

fn next_page(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    let (_, rest) = link.split_once('<')?;
    let (target, _) = rest.split_once('>')?;
    // An absolute address is of the same server.
    Some(target.find("/v1/").map_or(target, |at| &target[at..]).to_owned())
}

/// A key as the stream has it.
pub fn text(key: &Value) -> String {
    key.as_str().map_or_else(|| key.to_string(), str::to_owned)
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
