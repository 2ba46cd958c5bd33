//! Writers over REST: they write back what they have read, as clients do, and retry under the same transaction id.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};

use crate::journal::{Journal, shown};
use crate::names::in_url;
use crate::readers::text;
use crate::schema::Table;
use crate::support::{Answer, Client};

/// Rows that a writer remembers for making them again.
const REMEMBERED: usize = 50;
/// Columns that the server keeps itself.
const MANAGED: [&str; 4] = ["transactions", "last_client_id", "deleted_at", "modified_at"];
/// Attempts of one mutation.
const ATTEMPTS: usize = 3;

pub struct RestWriter {
    pub clients: Vec<Client>,
    pub tables: Vec<Table>,
    pub seed: u64,
    pub pause: u64,
    pub stop: Arc<AtomicBool>,
    pub journal: Arc<Journal>,
}

impl RestWriter {
    pub async fn run(self) {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut known: Vec<Vec<Map<String, Value>>> = vec![vec![]; self.tables.len()];
        while !self.stop.load(Ordering::Relaxed) {
            let place = random.random_range(0..self.tables.len());
            self.turn(place, &mut known[place], &mut random).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..=self.pause))).await;
        }
    }

    async fn turn(&self, place: usize, known: &mut Vec<Map<String, Value>>, random: &mut StdRng) {
        let table = &self.tables[place];
        let list = format!("{}?limit=20", table.path());
        let Some(answer) = self.send(Method::GET, &list, &[], None, random).await else { return };
        if answer.status != 200 {
            return;
        }
        let Ok(Value::Array(rows)) = serde_json::from_slice(&answer.body) else { return };
        let rows: Vec<Map<String, Value>> =
            rows.into_iter().filter_map(|row| row.as_object().cloned()).collect();
        known.extend(rows.iter().cloned());
        let surplus = known.len().saturating_sub(REMEMBERED);
        known.drain(..surplus);
        let Some(template) = known.choose(random).cloned() else { return };
        let usable = |name: &&String| !MANAGED.contains(&name.as_str()) && **name != table.key;
        let mut values: Map<String, Value> = template
            .iter()
            .filter(|(name, _)| usable(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let id = format!("rest-{}-{}", self.seed, random.random::<u64>());
        let headers = [("x-transaction-id", id.as_str()), ("x-client-id", "oracle")];
        let path =
            rows.choose(random).map(|row| format!("{}/{}", table.path(), in_url(&text(&row[&table.key]))));
        let (method, path, body) = match (random.random_range(0..10), path) {
            (0..5, Some(path)) => {
                values.retain(|_, _| random.random_bool(0.4));
                (Method::PATCH, path, Some(Value::Object(values)))
            }
            (5..7, Some(path)) => (Method::DELETE, path, None),
            _ => {
                values.insert(table.key.clone(), template[&table.key].clone());
                (Method::POST, table.path(), Some(Value::Object(values)))
            }
        };
        for _ in 0..ATTEMPTS {
            let Some(answer) = self.send(method.clone(), &path, &headers, body.as_ref(), random).await else {
                continue;
            };
            self.journal.count(&format!("{method} {}", answer.status));
            match answer.status {
                200 | 201 => {
                    let what = format!(
                        "{method} {path} {}",
                        body.as_ref().map(Value::to_string).unwrap_or_default()
                    );
                    self.journal.transaction("rest", &[what], &id);
                }
                503 | 429 => continue,
                // What a foreign writer or the database's own rules refuse.
                404 | 409 | 422 | 400 | 413 | 414 => {}
                status => {
                    self.journal.fault(format!(
                        "{method} {path}: {status} {}",
                        shown(&String::from_utf8_lossy(&answer.body))
                    ));
                }
            }
            return;
        }
    }

    /// An answer; none if the server could not be reached or was cut off.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
        random: &mut StdRng,
    ) -> Option<Answer> {
        let client = self.clients.choose(random).unwrap();
        let mut headers = headers.to_vec();
        headers.extend(body.map(|_| ("content-type", "application/json")));
        let body = body.map(Value::to_string).unwrap_or_default();
        let sent = client.try_send(method, path, &headers, Bytes::from(body));
        // A half-open connection never answers.
        tokio::time::timeout(Duration::from_secs(15), sent).await.ok()?.ok()
    }
}
