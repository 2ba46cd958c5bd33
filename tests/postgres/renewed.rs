//! A log that an operator renews by hand: readers of tables start again, those of stored streams go on.

use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::site::{PAGE, PAGES, PAGES_PATH, Site, said};
use crate::support::{Client, Event, eventually};

const STREAM: &str = "/v1/stream/notes";
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

async fn append(client: &Client, text: &str) -> String {
    let body = Bytes::from(json!([text]).to_string());
    let answer = client.send(Method::POST, STREAM, JSON, body).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    answer.next_offset()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_log_is_renewed_lists_start_again_and_readers_of_stored_streams_stay() {
    let site = Site::new(PAGES, PAGE).await.eager();
    let server = site.server().await;
    let client = server.client();
    site.sql("INSERT INTO pages (id) VALUES ('p1')");
    site.captured().await;
    let (_, pages) = client.read_all(PAGES_PATH, "-1").await;
    assert_eq!(client.send(Method::PUT, STREAM, JSON, Bytes::new()).await.status, 201);
    let begun = append(&client, "one").await;
    let mut of_pages = client.events(&format!("{PAGES_PATH}?offset={pages}&live=sse"), &[]).await;
    let mut live = client.events(&format!("{STREAM}?offset=-1&live=sse"), &[]).await;
    assert_eq!(live.messages().await, (vec![json!("one")], begun.clone()));
    let waiting = {
        let (client, path) = (server.client(), format!("{STREAM}?offset={begun}&live=long-poll"));
        tokio::spawn(async move { client.get(&path).await })
    };
    client.until_readers(&["long-poll"]).await;

    let number = site.sql("SELECT id FROM bourn.streams WHERE path = 'notes'");
    let renewed = site.run(&["log", "renew"]).await;
    assert!(renewed.status.success(), "{}", said(&renewed));
    assert_ne!(site.sql("SELECT id FROM bourn.streams WHERE path = 'notes'"), number);
    while of_pages.next().await != Event::End {}
    eventually("the old offset is gone", async || {
        client.get(&format!("{PAGES_PATH}?offset={pages}")).await.status == 410
    })
    .await;
    let read = client.get(&format!("{STREAM}?offset={begun}")).await;
    assert_eq!((read.status, read.text()), (200, "[]"));

    let end = append(&client, "two").await;
    assert_eq!(live.messages().await, (vec![json!("two")], end.clone()));
    let waited = waiting.await.unwrap();
    assert_eq!((waited.status, waited.text(), waited.next_offset()), (200, r#"["two"]"#, end));
    site.assert_agrees(&server, "pages").await;
}
