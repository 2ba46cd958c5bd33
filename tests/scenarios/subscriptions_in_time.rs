//! Subscriptions of a SQLite file that goes back in time, or that another file takes the place of: no work is missed for ever, and
//! nothing that was done for the other log counts for this one.

use http::Method;
use serde_json::{Value, json};

use crate::subscriptions::{assert_control_error, control, stream};
use crate::support::{Bourn, Client, eventually, sqlite3};

async fn subscribe(client: &Client, id: &str) {
    stream(client, Method::PUT, "wakes", "[]").await;
    let wanted =
        json!({ "type": "pull-wake", "streams": ["s"], "wake_stream": "wakes", "lease_ttl_ms": 60_000 });
    let path = format!("subscriptions/{id}");
    assert_eq!(control(client, Method::PUT, &path, "", &wanted).await.status, 201);
    stream(client, Method::PUT, "s", "[]").await;
}

async fn claim(client: &Client, id: &str) -> Value {
    let mut claimed = Value::Null;
    eventually("there is work", async || {
        let path = format!("subscriptions/{id}/claim");
        let answer = control(client, Method::POST, &path, "", &json!({ "worker": "w" })).await;
        claimed = answer.json();
        answer.status == 200
    })
    .await;
    claimed
}

/// The worker's word on a claim: what it has done, and whether that was all.
async fn word(
    client: &Client,
    id: &str,
    claimed: &Value,
    offset: Option<&str>,
    done: bool,
) -> crate::support::Answer {
    let acks: Vec<Value> = offset.iter().map(|offset| json!({ "stream": "s", "offset": offset })).collect();
    let body = json!({ "wake_id": claimed["wake_id"], "generation": claimed["generation"], "acks": acks, "done": done });
    let token = claimed["token"].as_str().unwrap();
    control(client, Method::POST, &format!("subscriptions/{id}/ack"), token, &body).await
}

#[tokio::test]
async fn what_a_worker_did_of_a_part_that_was_lost_does_not_count_for_what_came_in_its_place() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    subscribe(&client, "sub").await;
    stream(&client, Method::POST, "s", r#"["kept"]"#).await;
    let claimed = claim(&client, "sub").await;
    let backup = bourn.database().with_extension("backup");
    sqlite3(bourn.database(), &format!(".backup '{}'", backup.display()));
    stream(&client, Method::POST, "s", r#"["lost"]"#).await;
    let lost = client.get("/v1/stream/s?offset=-1").await.next_offset();
    assert_eq!(word(&client, "sub", &claimed, Some(&lost), false).await.status, 200);
    sqlite3(bourn.database(), &format!(".restore '{}'", backup.display()));
    eventually("it is noticed", async || {
        client.get("/v1/stream/s?offset=-1").await.messages() == [json!("kept")]
    })
    .await;
    for _ in 0..3 {
        stream(&client, Method::POST, "s", r#"["else"]"#).await;
    }
    // The worker still has its claim, which is in the backup.
    assert_control_error(&word(&client, "sub", &claimed, Some(&lost), false).await, 409, "INVALID_OFFSET");
    let kept = claimed["streams"][0]["tail_offset"].as_str().unwrap();
    let done = word(&client, "sub", &claimed, Some(kept), true).await;
    assert_eq!(done.json(), json!({ "ok": true, "next_wake": true }), "the others wait");
    let next = claim(&client, "sub").await;
    assert_eq!(next["streams"][0]["acked_offset"], kept);
    let tail = client.get("/v1/stream/s?offset=-1").await.next_offset();
    assert_eq!(next["streams"][0]["tail_offset"], tail);
    let done = word(&client, "sub", &next, Some(&tail), true).await;
    assert_eq!(done.json(), json!({ "ok": true, "next_wake": false }));
}

#[tokio::test]
async fn a_place_that_is_held_of_another_stream_hides_no_work() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    subscribe(&client, "sub").await;
    // As a crash between the end of one stream and the beginning of the next at its path may leave it.
    let far = "0000000000009999_0000000000000777";
    bourn.sql(&format!("UPDATE bourn_subscriptions SET state = json_set(state, '$.links.s.acked', '{far}')"));
    stream(&client, Method::POST, "s", r#"["work"]"#).await;
    eventually("the workers are woken", async || {
        client.get("/v1/stream/wakes?offset=-1").await.messages().len() == 1
    })
    .await;
    let claimed = claim(&client, "sub").await;
    assert_eq!(claimed["streams"][0]["acked_offset"], "0000000000000000_0000000000000000");
}

#[tokio::test]
async fn a_file_in_the_place_of_another_brings_its_own_subscriptions_and_keys() {
    let (bourn, other) = (Bourn::start(&[]).await, Bourn::start(&[]).await);
    let client = bourn.client();
    subscribe(&client, "ours").await;
    subscribe(&other.client(), "theirs").await;
    stream(&other.client(), Method::POST, "s", r#"["work"]"#).await;
    let claimed = claim(&other.client(), "theirs").await;
    let keys = async |client: &Client| control(client, Method::GET, "jwks.json", "", &json!({})).await.json();
    let (ours, theirs) = (keys(&client).await, keys(&other.client()).await);
    assert_ne!(ours, theirs);
    let copy = bourn.database().with_extension("copy");
    sqlite3(other.database(), &format!(".backup '{}'", copy.display()));
    std::fs::rename(copy, bourn.database()).unwrap();
    eventually("its keys are used", async || keys(&client).await == theirs).await;
    let there = async |id: &str| {
        control(&client, Method::GET, &format!("subscriptions/{id}"), "", &json!({})).await.status
    };
    assert_eq!((there("ours").await, there("theirs").await), (404, 200));
    // A worker of the other server goes on where it was.
    stream(&client, Method::POST, "s", r#"["more"]"#).await;
    let kept = claimed["streams"][0]["tail_offset"].as_str().unwrap();
    let done = word(&client, "theirs", &claimed, Some(kept), true).await;
    assert_eq!(done.json(), json!({ "ok": true, "next_wake": true }));
}
