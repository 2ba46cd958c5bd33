//! A real nginx with `proxy_cache` in front: how much of what readers ask for reaches the server.

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use tokio::process::{Child, Command};

use serde_json::json;

use crate::support::tokens::{issuer_with_secret, token};
use crate::support::{Bourn, Client, eventually, free_port};

const PAGES: &str = "/v1/entities/pages";
/// The log, in small transactions, and the readers of each kind.
const CHANGES: usize = 50_000;
const READERS: usize = 200;
/// Readers at a time.
const AT_ONCE: usize = 20;

struct Nginx {
    _child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Nginx {
    /// Starts one with a file that an operator would start from, with the names of this test put in.
    async fn start(template: &str, origin: &str) -> Nginx {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = template
            .replace("127.0.0.1:4437", origin)
            .replace("127.0.0.1:4438", origin)
            .replace("listen 80", &format!("listen 127.0.0.1:{port}"))
            .replace("/var/cache/nginx/bourn", directory.path().join("cache").to_str().unwrap())
            .replace("/var/log/nginx", directory.path().to_str().unwrap())
            .replace("/run/nginx.pid", directory.path().join("nginx.pid").to_str().unwrap());
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("nginx")
            .args(["-g", "daemon off; master_process off; user root;", "-c"])
            .arg(&file)
            .arg("-p")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx is installed");
        let nginx = Nginx { _child: child, directory, port };
        let client = nginx.client();
        eventually("nginx answers", async || client.get("/health").await.status == 200).await;
        nginx
    }

    fn client(&self) -> Client {
        Client::new(&format!("127.0.0.1:{}", self.port))
    }

    /// Stream reads asked for so far, and how many of them the origin had to answer.
    fn counts(&self) -> (usize, usize) {
        let log = std::fs::read_to_string(self.directory.path().join("bourn.access.log")).unwrap();
        let reads = log.lines().filter(|line| line.contains("offset="));
        let (hits, all): (Vec<_>, Vec<_>) =
            (reads.clone().filter(|line| line.ends_with(" HIT")).collect(), reads.collect());
        (all.len(), all.len() - hits.len())
    }
}

/// Writes the changes over REST, each a transaction of its own.
async fn fill(client: &Client) {
    const WRITERS: usize = 32;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut connection = client.connect().await.unwrap();
                for i in (writer..CHANGES).step_by(WRITERS) {
                    let body = crate::support::page(&format!("p{i:06}"), "a page").to_string();
                    let headers = [("content-type", "application/json")];
                    let answer = connection.send(Method::POST, PAGES, &headers, body.into()).await.unwrap();
                    assert_eq!(answer.status, 201, "{}", answer.text());
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Reads from these places to the tail, some readers at a time; gives how many bytes each had. What the messages
/// are is looked at elsewhere.
async fn read_through(client: &Client, starts: Vec<String>) -> Vec<usize> {
    let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let readers: Vec<_> = starts
        .into_iter()
        .map(|start| {
            let (client, places) = (client.clone(), places.clone());
            tokio::spawn(async move {
                let _place = places.acquire().await.unwrap();
                let mut connection = client.connect().await.unwrap();
                let (mut offset, mut bytes) = (start, 0);
                loop {
                    let path = format!("{PAGES}?offset={offset}");
                    let answer = connection.send(Method::GET, &path, &[], Bytes::new()).await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    // Without the array's brackets and with a separator for each message.
                    bytes += answer.body.len() - 1;
                    offset = answer.next_offset();
                    if answer.up_to_date() {
                        return bytes;
                    }
                }
            })
        })
        .collect();
    let mut lengths = Vec::new();
    for reader in readers {
        lengths.push(reader.await.unwrap());
    }
    lengths
}

#[allow(clippy::cast_precision_loss)]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_front_answers_for_nearly_all_readers() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    fill(&client).await;
    let tail = client.get(&format!("{PAGES}?offset=now")).await.next_offset();
    let (epoch, place) = tail.split_once('_').unwrap();
    assert_eq!(place, format!("{CHANGES:016}"));
    let nginx = Nginx::start(include_str!("../../deploy/nginx.conf"), bourn.address()).await;

    let lengths = read_through(&nginx.client(), vec!["-1".to_owned(); READERS]).await;
    assert!(lengths.iter().all(|length| *length == lengths[0] && *length > CHANGES * 100));
    let (asked, origin) = nginx.counts();
    let chunks = asked / READERS;
    println!(
        "{READERS} readers from -1: {chunks} chunks, {asked} requests, {origin} at the origin: {:.3} a reader, {:.2} %",
        ratio(origin, READERS),
        ratio(origin, asked) * 100.0
    );
    // Each chunk must be asked for once; what expires meanwhile (the tail after 5 s) once more.
    assert!(origin >= chunks && origin <= chunks + 10, "{origin} origin requests for {chunks} chunks");
    assert!(ratio(origin, asked) < 0.05);

    // Places anywhere in the log, the same in every run: multiples of a prime.
    let places: Vec<usize> = (1..=READERS).map(|i| (i * 7_919 * 31) % CHANGES).collect();
    let starts = places.iter().map(|place| format!("{epoch}_{place:016}")).collect();
    let from_places = read_through(&nginx.client(), starts).await;
    assert!(from_places.iter().all(|length| *length < lengths[0]));
    let (all_asked, all_origin) = nginx.counts();
    let (asked, origin) = (all_asked - asked, all_origin - origin);
    println!(
        "{READERS} readers from random places: {asked} requests, {origin} at the origin: {:.3} a reader, {:.2} %",
        ratio(origin, READERS),
        ratio(origin, asked) * 100.0
    );
    assert!(ratio(origin, READERS) < 1.1, "{origin} origin requests");
    assert!(ratio(origin, asked) < 0.06, "{origin} origin requests of {asked}");

    // Live readers pass through unbuffered.
    let mut events = nginx.client().events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    client.make_page("live", "t-live").await;
    assert_eq!(events.messages().await.0[0]["key"], "live");
}

const ORGANIZATIONS: [&str; 5] = ["acme", "globex", "initech", "umbrella", "wayne"];
/// Rows of each organization; in chunks of 20.
const ROWS: usize = 200;
const HOSTILE: usize = 10_000;

/// What a row of an organization has that no other organization's may show.
fn canary(organization: &str) -> String {
    format!("canary-of-{organization}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_front_gives_an_organizations_history_to_its_members_alone() {
    let (edge, directory) = (free_port(), tempfile::tempdir().unwrap());
    let roles = "[[access.role]]\nname = 'member'\nread = ['page']\nwrite = ['page']\n";
    let listener = format!("[[listener]]\naddress = '127.0.0.1:{edge}'\nrole = 'edge'\n");
    let config = issuer_with_secret(directory.path()) + roles + &listener;
    let bourn = Bourn::start_with(&config, &[("chunk_messages", "20")], |_| {}).await;
    let bearer = |subject: &str, scopes: &[&str]| {
        let claims = json!({ "sub": subject, "role": "member", "scopes": scopes });
        format!("Bearer {}", token(&claims))
    };
    let writer = bearer("writer", &ORGANIZATIONS);
    for organization in ORGANIZATIONS {
        for i in 0..ROWS {
            let row = json!({ "id": format!("{organization}-{i}"), "organization_id": organization, "name": canary(organization) });
            let made = bourn.client().post(PAGES, &[("authorization", &writer)], &row).await;
            assert_eq!(made.status, 201, "{}", made.text());
        }
    }
    let nginx =
        Nginx::start(include_str!("../../deploy/nginx-access.conf"), &format!("127.0.0.1:{edge}")).await;

    // A hundred readers of one organization, each with a token of its own, and some of each other one.
    let mut urls = Vec::new();
    for organization in ORGANIZATIONS {
        let readers = if organization == ORGANIZATIONS[0] { 100 } else { 20 };
        let before = nginx.counts();
        let mut chunks = Vec::new();
        for reader in 0..readers {
            let bearer = bearer(&format!("reader-{reader}"), &[organization]);
            let mut connection = nginx.client().connect().await.unwrap();
            let (mut offset, mut rows) = ("-1".to_owned(), 0);
            chunks.clear();
            loop {
                let path = format!("/v1/scopes/{organization}/entities/pages?offset={offset}");
                let headers = [("authorization", bearer.as_str())];
                let answer = connection.send(Method::GET, &path, &headers, Bytes::new()).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!((answer.header("x-accel-expires"), answer.header("surrogate-control")), ("", ""));
                rows += answer.text().matches(&canary(organization)).count();
                offset = answer.next_offset();
                if answer.up_to_date() {
                    break;
                }
                chunks.push(path);
            }
            assert_eq!(rows, ROWS);
        }
        let (all, origin) = nginx.counts();
        let (asked, origin) = (all - before.0, origin - before.1);
        println!("{organization}: {readers} readers, {asked} requests, {origin} at the origin");
        // Beside each chunk once: what expires meanwhile, which is the tail.
        assert!(origin <= chunks.len() + 10, "{origin} origin requests for {} chunks", chunks.len());
        if readers == 100 {
            assert!(ratio(asked - origin, asked) >= 0.99, "{origin} of {asked}");
        }
        urls.extend(chunks.iter().map(|path| (organization, path.clone())));
    }

    // Through the warm cache: no token, a broken one, another organization's, other spellings.
    let hostile: Arc<[(&str, String)]> = urls.into();
    let strangers: Vec<_> = (0..AT_ONCE)
        .map(|stranger| {
            let (client, hostile) = (nginx.client(), hostile.clone());
            let others: Vec<String> =
                ORGANIZATIONS.iter().map(|organization| bearer("stranger", &[organization])).collect();
            tokio::spawn(async move {
                let mut connection = client.connect().await.unwrap();
                for i in (stranger..HOSTILE).step_by(AT_ONCE) {
                    let (organization, path) = &hostile[i % hostile.len()];
                    let other = (0..).map(|n| (i / 7 + n) % ORGANIZATIONS.len());
                    let other = other.into_iter().find(|&at| ORGANIZATIONS[at] != *organization).unwrap();
                    let spelled = match i % 5 {
                        0 => path.replace("entities", "%65ntities"),
                        1 => format!("{path}&&"),
                        2 => path.replace("/v1/", "/v1/x/../"),
                        _ => path.clone(),
                    };
                    let asked: Vec<(&str, &str)> = match i % 4 {
                        0 => vec![],
                        1 => vec![("authorization", "Bearer a.b.c")],
                        2 => vec![("authorization", &others[other]), ("x-original-uri", "/health")],
                        _ => vec![("authorization", &others[other]), ("x-forwarded-uri", "/health")],
                    };
                    let answer = connection.send(Method::GET, &spelled, &asked, Bytes::new()).await.unwrap();
                    assert!(!answer.text().contains("canary"), "{spelled} leaked");
                    assert!(matches!(answer.status, 400 | 401 | 403 | 404), "{spelled}: {}", answer.status);
                }
            })
        })
        .collect();
    for stranger in strangers {
        stranger.await.unwrap();
    }
    // A refusal is Bourn's own, and says why.
    let refused = nginx.client().get(&hostile[0].1).await;
    refused.assert_error(401, "TOKEN_MISSING");
    assert!(refused.header("www-authenticate").starts_with("Bearer"));
    let stranger = bearer("stranger", &["globex"]);
    let refused = nginx.client().get_with(&hostile[0].1, &[("authorization", &stranger)]).await;
    refused.assert_error(403, "SCOPE_FORBIDDEN");
    // Writes pass through with their token, and live readers unbuffered.
    let member = bearer("member", &["acme"]);
    let member = [("authorization", member.as_str())];
    let mut events =
        nginx.client().events("/v1/scopes/acme/entities/pages?offset=now&live=sse", &member).await;
    events.control().await;
    let row = json!({ "id": "live", "organization_id": "acme", "name": "x" });
    assert_eq!(nginx.client().post(PAGES, &member, &row).await.status, 201);
    assert_eq!(events.messages().await.0[0]["key"], "live");
}
