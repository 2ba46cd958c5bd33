//! Retention: old activities leave the streams, and no reader is misled by that. Readers start anywhere, sleep, wake with
//! offsets of long ago, and end in the table's state, or have to begin again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::support::{Bourn, Client, PATIENCE, eventually, page};

/// Old things go within a second, in small chunks.
const SETTINGS: [(&str, &str); 4] = [
    ("retention_history", "400ms"),
    ("retention_interval", "20ms"),
    ("chunk_messages", "5"),
    ("body_limit", "64KiB"),
];

type State = BTreeMap<String, Value>;

/// A reader of one stream, and where it has been.
struct Reader {
    stream: &'static str,
    offset: String,
    state: State,
    been: Vec<(String, State)>,
    begun_again: usize,
}

impl Reader {
    fn new(stream: &'static str) -> Reader {
        Reader { stream, offset: "-1".into(), state: State::new(), been: Vec::new(), begun_again: 0 }
    }

    /// Reads one chunk; says whether it has come to the tail.
    async fn read(&mut self, client: &Client) -> bool {
        let separator = if self.stream.contains('?') { '&' } else { '?' };
        let answer = client.get(&format!("{}{separator}offset={}", self.stream, self.offset)).await;
        if answer.status == 410 {
            answer.assert_error(410, "OFFSET_GONE");
            assert_ne!(self.offset, "-1", "the start is never gone");
            (self.offset, self.state) = ("-1".into(), State::new());
            self.begun_again += 1;
            return false;
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        for message in answer.messages() {
            let key = message["key"].as_str().unwrap().to_owned();
            match message["headers"]["operation"].as_str().unwrap() {
                "delete" => self.state.remove(&key),
                _ => self.state.insert(key, message["value"].clone()),
            };
        }
        self.offset = answer.next_offset();
        self.been.push((self.offset.clone(), self.state.clone()));
        answer.up_to_date()
    }

    /// Goes back to where it was at some time, as a client does that kept an offset and a copy.
    fn wake(&mut self, random: &mut StdRng) {
        if !self.been.is_empty() {
            let back = random.random_range(0..self.been.len());
            (self.offset, self.state) = self.been[back].clone();
        }
    }
}

async fn rows(client: &Client, list: &str) -> State {
    let rows = client.get(list).await.json();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (row["id"].as_str().unwrap().to_owned(), row.clone())).collect()
}

/// One change at random.
async fn change(client: &Client, random: &mut StdRng) {
    let id = format!("p{}", random.random_range(0..8));
    let path = format!("/v1/entities/pages/{id}");
    let scope = ["acme", "beta"][random.random_range(0..2)];
    match random.random_range(0..6) {
        0 | 1 => drop(client.post("/v1/entities/pages", &[], &page(&id, "new")).await),
        2 => drop(client.delete(&path, &[]).await),
        3 => drop(client.patch(&path, &[], &json!({ "organization_id": scope })).await),
        _ => drop(client.patch(&path, &[], &json!({ "name": random.random_range(0..99).to_string() })).await),
    }
}

/// What holds on every database.
pub async fn whoever_reads_ends_in_the_tables_state(client: &Client) {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let streams = [
        "/v1/entities/pages",
        "/v1/entities/pages?organizationId=acme",
        "/v1/entities/pages?organizationId=beta",
    ];
    let mut readers: Vec<Reader> = streams.into_iter().chain(streams).map(Reader::new).collect();
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut changes = 0;
    while Instant::now() < deadline {
        change(client, &mut random).await;
        changes += 1;
        let reader = random.random_range(0..readers.len());
        let reader = &mut readers[reader];
        if random.random_range(0..12) == 0 {
            reader.wake(&mut random);
        }
        reader.read(client).await;
    }
    assert!(changes > 100);
    // One change that stays the newest, so that everything before it can go.
    client.post("/v1/entities/attachments", &[], &json!({ "id": "last", "organization_id": "acme" })).await;
    eventually("what was superseded has left", async || {
        let (left, _) = client.read_all("/v1/activities", "-1").await;
        left.len() <= rows(client, "/v1/entities/pages").await.len() + 1
    })
    .await;
    for reader in &mut readers {
        for _ in 0..4 {
            reader.wake(&mut random);
            let deadline = Instant::now() + PATIENCE;
            while !reader.read(client).await {
                assert!(Instant::now() < deadline, "a reader never comes to the tail");
            }
            assert_eq!(reader.state, rows(client, reader.stream).await, "{}", reader.stream);
        }
    }
    assert!(readers.iter().any(|reader| reader.begun_again > 0), "somebody slept too long");
    // The last change of what is left of a transaction says so, and the history is still known.
    let (left, _) = client.read_all("/v1/entities/pages", "-1").await;
    assert!(left.iter().all(|message| message["headers"]["last"] == true), "{left:#?}");
    let history = client.get("/v1/activities?entityType=page&limit=1000").await.json();
    assert!(history.as_array().unwrap().len() > left.len() * 2, "the audit trail has what has left");
    // The tail of a stream whose newest activities have left can be followed.
    let tail = client.get("/v1/entities/pages?offset=now").await.next_offset();
    assert_eq!(client.get(&format!("/v1/entities/pages?offset={tail}")).await.status, 200);
}

#[tokio::test]
async fn whoever_reads_from_sqlite_ends_in_the_tables_state() {
    let bourn = Bourn::start(&SETTINGS).await;
    whoever_reads_ends_in_the_tables_state(&bourn.client()).await;
}

#[tokio::test]
async fn the_audit_trail_goes_in_its_own_time() {
    let bourn = Bourn::start(&[&SETTINGS[..], &[("retention_audit", "800ms")]].concat()).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    client.patch("/v1/entities/pages/p1", &[("X-Transaction-Id", "t2")], &json!({ "name": "b" })).await;
    client.make_page("p2", "t3").await;
    let history =
        async || client.get("/v1/activities?transactionId=t1").await.json().as_array().unwrap().len();
    assert_eq!(history().await, 1);
    eventually("the superseded version has left the trail", async || history().await == 0).await;
    assert_eq!(client.get("/v1/entities/pages?offset=-1").await.messages().len(), 2);
    // What was done is done, whatever is still known of it.
    assert_eq!(client.get("/v1/transactions/t2").await.json()["state"], "confirmed");
}
