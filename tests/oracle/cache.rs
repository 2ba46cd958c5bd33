//! A small shared HTTP cache in front of the servers, as a CDN is one: it keeps answers as long as `Cache-Control` lets it
//! and asks with the entity tag afterwards. It also watches that an address of sealed history never gives two bodies, and
//! no entity tag stands for two bodies.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;

use crate::journal::Journal;
use crate::support::{Answer, Client};

/// Answers that are kept; past it all go.
const ANSWERS: usize = 2_048;

#[derive(Debug, Default)]
pub struct Cache {
    answers: Mutex<HashMap<String, Kept>>,
    /// What each sealed address gave, and each entity tag at each address.
    sealed: Mutex<HashMap<String, u64>>,
    tags: Mutex<HashMap<(String, String), u64>>,
    /// What each message was, by its stream and seq.
    messages: Mutex<HashMap<(u64, u64), u64>>,
}

#[derive(Debug, Clone)]
struct Kept {
    answer: Answer,
    until: Instant,
}

pub fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// How long an answer may be kept.
fn lifetime(answer: &Answer) -> Option<Duration> {
    let control = answer.header("cache-control");
    if control.contains("no-store") {
        return None;
    }
    let age = control.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    Some(Duration::from_secs(age.parse().ok()?))
}

impl Cache {
    /// An answer from the cache, or from the server through it.
    pub async fn get(&self, client: &Client, path: &str, journal: &Journal) -> Result<Answer, String> {
        let kept = lock(&self.answers).get(path).cloned();
        if let Some(kept) = kept.as_ref().filter(|kept| Instant::now() < kept.until) {
            journal.count("answers from the cache");
            return Ok(kept.answer.clone());
        }
        let tag =
            kept.as_ref().map(|kept| kept.answer.header("etag").to_owned()).filter(|tag| !tag.is_empty());
        let condition: Vec<(&str, &str)> = tag.iter().map(|tag| ("if-none-match", tag.as_str())).collect();
        let answer = client.try_send(Method::GET, path, &condition, Bytes::new()).await?;
        let answer = match (answer.status, kept) {
            (304, Some(kept)) => {
                journal.count("answers that are still valid");
                let mut whole = kept.answer;
                // A tail that gained nothing may have been told again with other headers.
                whole
                    .headers
                    .extend(answer.headers.into_iter().filter_map(|(name, value)| Some((name?, value))));
                whole
            }
            _ => answer,
        };
        self.watch(path, &answer, journal);
        if let Some(lifetime) = lifetime(&answer) {
            let mut answers = lock(&self.answers);
            if answers.len() >= ANSWERS {
                answers.clear();
            }
            answers
                .insert(path.to_owned(), Kept { answer: answer.clone(), until: Instant::now() + lifetime });
        }
        Ok(answer)
    }

    fn watch(&self, path: &str, answer: &Answer, journal: &Journal) {
        if answer.status != 200 || path.contains("live=") {
            return;
        }
        let body = hash(&answer.body);
        let tag = answer.header("etag").to_owned();
        if tag.is_empty() {
            journal.fault(format!("GET {path} has no entity tag"));
        } else if *lock(&self.tags).entry((path.to_owned(), tag.clone())).or_insert(body) != body {
            journal.fault(format!("GET {path} gave two bodies under the entity tag {tag}"));
        }
        if !answer.up_to_date() && *lock(&self.sealed).entry(path.to_owned()).or_insert(body) != body {
            journal.fault(format!("GET {path} is sealed and gave two bodies"));
        }
    }

    /// Notes a message; the same place of a stream must always have the same one.
    pub fn message(&self, stream: &str, seq: u64, text: &str, journal: &Journal) {
        let text_hash = hash(text);
        if *lock(&self.messages).entry((hash(stream), seq)).or_insert(text_hash) != text_hash {
            journal.fault(format!("{stream} has another message at {seq} than before: {text:.300}"));
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
