//! Subscriptions as their users meet them: what the official suite does not ask.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::ground::Ground;
use crate::support::{Client, eventually};

const JSON: (&str, &str) = ("content-type", "application/json");

pub async fn control(
    client: &Client,
    method: Method,
    path: &str,
    token: &str,
    body: &Value,
) -> crate::support::Answer {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![JSON];
    if !token.is_empty() {
        headers.push(("authorization", &bearer));
    }
    client.send(method, &format!("/v1/stream/__ds/{path}"), &headers, body.to_string()).await
}

pub async fn stream(client: &Client, method: Method, path: &str, body: &str) {
    let answer = client.send(method, &format!("/v1/stream/{path}"), &[JSON], body.to_owned()).await;
    assert!(answer.status < 300, "{}", answer.text());
}

#[track_caller]
pub fn assert_control_error(answer: &crate::support::Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)), "{}", answer.text());
}

pub async fn a_webhook_leads_to_no_private_address_unless_the_operator_says_so<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    for url in [
        "http://127.0.0.1:9/hook",
        "https://127.0.0.1/hook",
        "https://localhost/hook",
        "https://192.168.1.1/",
        "https://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "http://example.com/",
    ] {
        let body = json!({ "type": "webhook", "pattern": "a/*", "webhook": { "url": url } });
        let answer = control(&client, Method::PUT, "subscriptions/s", "", &body).await;
        assert_control_error(&answer, 400, "WEBHOOK_URL_REJECTED");
    }
}

pub async fn subscriptions_and_what_they_follow_are_limited<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[("subscriptions", "1"), ("subscription_streams", "2")]).await;
    let client = bourn.client();
    let of = |streams: &[&str]| json!({ "type": "pull-wake", "streams": streams, "wake_stream": "wakes" });
    let many = control(&client, Method::PUT, "subscriptions/s", "", &of(&["a", "b", "c"])).await;
    assert_control_error(&many, 429, "TOO_MANY");
    assert_eq!(control(&client, Method::PUT, "subscriptions/s", "", &of(&["b", "a"])).await.status, 201);
    assert_eq!(control(&client, Method::PUT, "subscriptions/s", "", &of(&["a", "b"])).await.status, 200);
    let other = control(&client, Method::PUT, "subscriptions/s", "", &of(&["a"])).await;
    assert_control_error(&other, 409, "SUBSCRIPTION_ALREADY_EXISTS");
    let second = control(&client, Method::PUT, "subscriptions/t", "", &of(&["a"])).await;
    assert_control_error(&second, 429, "TOO_MANY");
    assert_eq!(second.header("retry-after"), "1");
    let unknown = control(&client, Method::GET, "nothing", "", &json!({})).await;
    assert_eq!(unknown.status, 404);
}

pub async fn work_outlives_a_crash_and_a_lease_that_ends_passes_it_on<G: Ground>() {
    let ground = G::new();
    let mut bourn = ground.server(&[]).await;
    let client = bourn.client();
    stream(&client, Method::PUT, "wakes", "[]").await;
    let wanted =
        json!({ "type": "pull-wake", "pattern": "jobs/**", "wake_stream": "wakes", "lease_ttl_ms": 1000 });
    assert_eq!(control(&client, Method::PUT, "subscriptions/s", "", &wanted).await.status, 201);
    stream(&client, Method::PUT, "jobs/a/b", "[]").await;
    stream(&client, Method::POST, "jobs/a/b", "1").await;
    let claim = async |worker: &str| {
        let body = json!({ "worker": worker });
        control(&client, Method::POST, "subscriptions/s/claim", "", &body).await
    };
    eventually("there is work", async || claim("one").await.status == 200).await;
    assert_control_error(&claim("two").await, 409, "ALREADY_CLAIMED");
    bourn.kill().await;
    bourn.restart().await;
    let mut claimed = Value::Null;
    eventually("the lease has ended", async || {
        let answer = claim("two").await;
        claimed = answer.json();
        answer.status == 200
    })
    .await;
    assert!(claimed["generation"].as_u64().unwrap() >= 2, "{claimed}");
    let (token, tail) = (claimed["token"].as_str().unwrap(), &claimed["streams"][0]["tail_offset"]);
    let word = |generation: u64| {
        json!({ "wake_id": claimed["wake_id"], "generation": generation, "done": true,
                "acks": [{ "stream": "jobs/a/b", "offset": tail }] })
    };
    let generation = claimed["generation"].as_u64().unwrap();
    let stale = control(&client, Method::POST, "subscriptions/s/ack", token, &word(generation - 1)).await;
    assert_control_error(&stale, 409, "FENCED");
    let forged = control(&client, Method::POST, "subscriptions/s/ack", "x.y", &word(generation)).await;
    assert_control_error(&forged, 401, "TOKEN_INVALID");
    let done = control(&client, Method::POST, "subscriptions/s/ack", token, &word(generation)).await;
    assert_eq!(done.json(), json!({ "ok": true, "next_wake": false }));
    assert_control_error(&claim("one").await, 409, "NO_PENDING_WORK");
}

pub async fn a_webhook_that_fails_is_shown_and_tried_again<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[("webhook_allow_private", "true")]).await;
    let client = bourn.client();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let wanted =
        json!({ "type": "webhook", "streams": ["s"], "webhook": { "url": url }, "lease_ttl_ms": 60000 });
    assert_eq!(control(&client, Method::PUT, "subscriptions/s", "", &wanted).await.status, 201);
    stream(&client, Method::PUT, "s", "[1]").await;
    // Redirects lead nowhere: they are failures.
    answer(&listener, "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
        .await;
    let status = async || {
        control(&client, Method::GET, "subscriptions/s", "", &json!({})).await.json()["status"].clone()
    };
    eventually("the failure is shown", async || status().await == "failed").await;
    answer(&listener, "HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"done\":true}").await;
    eventually("it is well again", async || status().await == "active").await;
    let claimed =
        control(&client, Method::POST, "subscriptions/s/claim", "", &json!({ "worker": "w" })).await;
    assert_control_error(&claimed, 400, "INVALID_REQUEST");
}

/// Answers one request, whatever it is.
async fn answer(listener: &tokio::net::TcpListener, with: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept());
    let (mut socket, _) = accepted.await.expect("a webhook comes in time").unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        assert!(socket.read_buf(&mut request).await.unwrap() > 0, "the request ended early");
    }
    let text = String::from_utf8(request).unwrap().to_lowercase();
    assert!(text.starts_with("post /hook ") && text.contains("webhook-signature: t="), "{text}");
    socket.write_all(with.as_bytes()).await.unwrap();
}

/// Subscribes with a wake stream.
async fn subscribe(client: &Client, id: &str, streams: &[&str], wake_stream: &str) {
    let wanted = json!({ "type": "pull-wake", "streams": streams, "wake_stream": wake_stream });
    let answer = control(client, Method::PUT, &format!("subscriptions/{id}"), "", &wanted).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
}

async fn wakes_of(client: &Client, wake_stream: &str) -> Vec<String> {
    let answer = client.get(&format!("/v1/stream/{wake_stream}?offset=-1")).await;
    if answer.status != 200 {
        return Vec::new();
    }
    let events = answer.json();
    let ids = events.as_array().unwrap().iter();
    ids.map(|event| event["subscription_id"].as_str().unwrap().to_owned()).collect()
}

pub async fn an_append_right_after_the_subscription_wakes_it<G: Ground>() {
    const SUBSCRIPTIONS: usize = 60;
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    stream(&client, Method::PUT, "wakes", "[]").await;
    for i in 0..SUBSCRIPTIONS {
        stream(&client, Method::PUT, &format!("s{i}"), "[]").await;
    }
    for i in 0..SUBSCRIPTIONS {
        subscribe(&client, &format!("of-{i}"), &[&format!("s{i}")], "wakes").await;
        stream(&client, Method::POST, &format!("s{i}"), "1").await;
    }
    let mut woken = std::collections::BTreeSet::new();
    let all = crate::support::within(Duration::from_secs(20), async || {
        woken.extend(wakes_of(&client, "wakes").await);
        woken.len() == SUBSCRIPTIONS
    });
    let all = all.await;
    assert!(all, "only {} of {SUBSCRIPTIONS} were woken", woken.len());
}

pub async fn a_wake_waits_for_its_stream_to_be_made<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    stream(&client, Method::PUT, "s", "[]").await;
    subscribe(&client, "one", &["s"], "later").await;
    stream(&client, Method::POST, "s", "1").await;
    let status = async || {
        control(&client, Method::GET, "subscriptions/one", "", &json!({})).await.json()["status"].clone()
    };
    eventually("the failure is shown", async || status().await == "failed").await;
    stream(&client, Method::PUT, "later", "[]").await;
    eventually("the wake is written", async || wakes_of(&client, "later").await == ["one"]).await;
    eventually("it is well again", async || status().await == "active").await;
}

pub async fn more_streams_than_allowed_are_refused_before_they_are_looked_up<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[]).await;
    let client = bourn.client();
    let names: Vec<String> = (0..110_000).map(|i| format!("{i}")).collect();
    let wanted = json!({ "type": "pull-wake", "streams": names, "wake_stream": "wakes" });
    let started = std::time::Instant::now();
    let answer = control(&client, Method::PUT, "subscriptions/s", "", &wanted).await;
    assert_control_error(&answer, 429, "TOO_MANY");
    assert!(started.elapsed() < Duration::from_secs(1), "it took {:?}", started.elapsed());
    let pattern = vec!["**"; 65].join("/");
    let wanted = json!({ "type": "pull-wake", "pattern": pattern, "wake_stream": "wakes" });
    let answer = control(&client, Method::PUT, "subscriptions/s", "", &wanted).await;
    assert_control_error(&answer, 400, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_statement_that_fails_loses_no_wake() {
    let bourn = crate::support::Bourn::start(&[]).await;
    let client = bourn.client();
    stream(&client, Method::PUT, "wakes", "[]").await;
    stream(&client, Method::PUT, "s", "[]").await;
    subscribe(&client, "one", &["s"], "wakes").await;
    bourn.sql(
        "CREATE TRIGGER refuse BEFORE UPDATE ON bourn_subscriptions BEGIN SELECT RAISE(ABORT, 'not now'); END",
    );
    stream(&client, Method::POST, "s", "1").await;
    eventually("the failure is noticed", async || bourn.log().contains("subscriptions cannot be looked at"))
        .await;
    bourn.sql("DROP TRIGGER refuse");
    eventually("the wake is written", async || wakes_of(&client, "wakes").await == ["one"]).await;
}

#[tokio::test]
async fn a_receiver_that_never_answers_has_one_webhook_on_its_way() {
    const SUBSCRIPTIONS: usize = 20;
    let settings = [("webhook_allow_private", "true"), ("webhooks", "2"), ("webhook_timeout", "1s")];
    let bourn = crate::support::Bourn::start(&settings).await;
    let client = bourn.client();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (counted, mut accepted) = tokio::sync::watch::channel(0);
    let receiver = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
            counted.send_modify(|count| *count += 1);
        }
    });
    stream(&client, Method::PUT, "s", "[]").await;
    for i in 0..SUBSCRIPTIONS {
        let wanted =
            json!({ "type": "webhook", "streams": ["s"], "webhook": { "url": url }, "lease_ttl_ms": 1000 });
        assert_eq!(
            control(&client, Method::PUT, &format!("subscriptions/{i}"), "", &wanted).await.status,
            201
        );
    }
    stream(&client, Method::POST, "s", "1").await;
    // Several leases go by.
    tokio::time::timeout(Duration::from_secs(60), accepted.wait_for(|count| *count >= 8))
        .await
        .unwrap()
        .unwrap();
    let figures = client.get("/metrics").await;
    let pending = figures.text().lines().find_map(|line| line.strip_prefix("bourn_webhooks_pending "));
    let pending: usize = pending.unwrap_or_else(|| panic!("{}", figures.text())).parse().unwrap();
    assert!(pending > 0 && pending <= SUBSCRIPTIONS, "{pending} webhooks wait");
    receiver.abort();
}
