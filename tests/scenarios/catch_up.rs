//! Catch-up reads: chunks, their cuts, their caching; and that every server gives the same bytes.

use serde_json::json;

use crate::support::{Bourn, Client};

const PAGES: &str = "/v1/entities/pages";
const SMALL_CHUNKS: (&str, &str) = ("chunk_messages", "16");

/// Makes pages by SQL, each in a transaction of its own, and waits until they are in the stream.
pub async fn fill(bourn: &Bourn, from: usize, count: usize) {
    let rows: String = (from..from + count)
        .map(|i| {
            format!("INSERT INTO pages (id, organization_id, name) VALUES ('p{i:06}', 'acme', 'page {i}');")
        })
        .collect();
    let before = bourn.client().read_all(PAGES, "-1").await.0.len();
    bourn.sql(&format!("BEGIN; {rows} COMMIT"));
    let client = bourn.client();
    crate::support::eventually("all pages are in the stream", async || {
        client.read_all(PAGES, "-1").await.0.len() == before + count
    })
    .await;
}

async fn make_pages(client: &Client, from: usize, count: usize) {
    for i in from..from + count {
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
}

#[tokio::test]
async fn sealed_chunks_are_immutable_and_the_tail_is_not() {
    let bourn = Bourn::start(&[SMALL_CHUNKS]).await;
    let client = bourn.client();
    let empty = client.get(&format!("{PAGES}?offset=-1")).await;
    assert_eq!((empty.text(), empty.header("cache-control"), empty.up_to_date()), ("[]", "no-store", true));
    make_pages(&client, 1, 40).await;

    let first = client.get(&format!("{PAGES}?offset=-1")).await;
    assert_eq!(first.header("cache-control"), "public, max-age=60, stale-while-revalidate=300");
    assert_eq!((first.messages().len(), first.up_to_date()), (16, false));
    let epoch = first.next_offset().split_once('_').unwrap().0.to_owned();
    assert_eq!(first.next_offset(), format!("{epoch}_0000000000000016"));

    let second = client.get(&format!("{PAGES}?offset={}", first.next_offset())).await;
    assert_eq!(second.header("cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(second.next_offset(), format!("{epoch}_0000000000000032"));

    let tail = client.get(&format!("{PAGES}?offset={}", second.next_offset())).await;
    assert_eq!((tail.messages().len(), tail.up_to_date()), (8, true));
    assert_eq!(tail.header("cache-control"), "public, max-age=5");
    let end = client.get(&format!("{PAGES}?offset={}", tail.next_offset())).await;
    assert_eq!(
        (end.text(), end.header("cache-control"), end.next_offset()),
        ("[]", "no-store", tail.next_offset())
    );

    make_pages(&client, 41, 10).await;
    let again = client.get(&format!("{PAGES}?offset={}", first.next_offset())).await;
    assert_eq!((&again.body, again.header("etag")), (&second.body, second.header("etag")));
    let grown = client.get(&format!("{PAGES}?offset={}", second.next_offset())).await;
    assert_ne!(grown.header("etag"), tail.header("etag"));
    // Readers that start anywhere fall onto the same places after one read.
    let aside = client.get(&format!("{PAGES}?offset={epoch}_0000000000000019")).await;
    assert_eq!(aside.next_offset(), second.next_offset());
}

#[tokio::test]
async fn what_a_reader_has_is_not_sent_again() {
    let bourn = Bourn::start(&[SMALL_CHUNKS]).await;
    let client = bourn.client();
    make_pages(&client, 1, 20).await;
    for path in [
        format!("{PAGES}?offset=-1"),
        format!("{PAGES}?offset={}", client.get(&format!("{PAGES}?offset=-1")).await.next_offset()),
    ] {
        let first = client.get(&path).await;
        let tag = first.header("etag").to_owned();
        let again = client.get_with(&path, &[("if-none-match", &format!("\"other\", {tag}"))]).await;
        assert_eq!((again.status, again.body.len()), (304, 0));
        for name in [
            "etag",
            "cache-control",
            "stream-next-offset",
            "stream-up-to-date",
            "access-control-expose-headers",
        ] {
            assert_eq!(again.header(name), first.header(name), "{name}");
        }
        assert_eq!(client.get_with(&path, &[("if-none-match", "\"other\"")]).await.status, 200);
    }
}

#[tokio::test]
async fn the_tail_is_told_without_reading() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    make_pages(&client, 1, 3).await;
    let head = client.send(http::Method::HEAD, PAGES, &[], "").await;
    let now = client.get(&format!("{PAGES}?offset=now")).await;
    let list = client.get(PAGES).await;
    assert_eq!((head.status, head.body.len(), head.header("content-type")), (200, 0, "application/json"));
    assert_eq!((now.text(), now.up_to_date()), ("[]", true));
    for answer in [&head, &now, &list] {
        assert!(answer.next_offset().ends_with("_0000000000000003"), "{}", answer.next_offset());
        assert_eq!(answer.header("cache-control"), "no-store");
    }
}

#[tokio::test]
async fn an_offset_of_another_log_or_past_the_tail_is_gone() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    client.make_page("p1", "t1").await;
    let other = client.get(&format!("{PAGES}?offset=zzzz_0000000000000001")).await;
    other.assert_error(410, "OFFSET_GONE");
    assert_eq!(other.header("cache-control"), "public, max-age=60");
    let epoch = client.get(&format!("{PAGES}?offset=now")).await.next_offset();
    let past =
        client.get(&format!("{PAGES}?offset={}_0000000000000002", epoch.split_once('_').unwrap().0)).await;
    past.assert_error(410, "OFFSET_GONE");
    assert_eq!(past.header("cache-control"), "no-store");
    for live in ["long-poll", "sse"] {
        client
            .get(&format!("{PAGES}?offset=zzzz_0000000000000001&live={live}"))
            .await
            .assert_error(410, "OFFSET_GONE");
    }
}

#[tokio::test]
async fn one_transaction_is_one_batch_however_large() {
    let bourn = Bourn::start(&[SMALL_CHUNKS]).await;
    let client = bourn.client();
    fill(&bourn, 0, 100).await;
    client.make_page("after", "t1").await;
    let chunk = client.get(&format!("{PAGES}?offset=-1")).await;
    let messages = chunk.messages();
    assert_eq!(messages.len(), 100);
    assert!(!chunk.up_to_date());
    let last: Vec<_> = messages
        .iter()
        .filter(|m| m["headers"]["last"] == json!(true))
        .map(|m| m["headers"]["seq"].clone())
        .collect();
    assert_eq!(json!(last), json!([100]));
    assert!(messages.iter().all(|m| m["headers"]["txid"] == "100"));
}

#[tokio::test]
async fn a_transaction_past_the_cap_is_cut_and_says_that_more_follows() {
    let caps = [("chunk_bytes", "4KiB"), ("transaction_bytes", "16KiB")];
    let bourn = Bourn::start(&caps).await;
    fill(&bourn, 0, 200).await;
    let client = bourn.client();
    let mut offset = "-1".to_owned();
    let (mut parts, mut lasts, mut seen) = (0, 0, 0);
    loop {
        let chunk = client.get(&format!("{PAGES}?offset={offset}")).await;
        assert!(chunk.body.len() <= 16 * 1024);
        let messages = chunk.messages();
        lasts += messages.iter().filter(|m| m["headers"]["last"] == json!(true)).count();
        seen += messages.len();
        parts += 1;
        offset = chunk.next_offset();
        if chunk.up_to_date() {
            break;
        }
        assert_eq!(lasts, 0, "only the last part ends the transaction");
    }
    assert!(parts > 2, "{parts} parts");
    assert_eq!((lasts, seen), (1, 200));
}

#[tokio::test]
async fn two_servers_of_one_database_give_the_same_bytes() {
    let one = Bourn::start(&[SMALL_CHUNKS]).await;
    let two = Bourn::start_on(one.url(), &[SMALL_CHUNKS]).await;
    let (a, b) = (one.client(), two.client());
    for i in 0..60 {
        let client = if i % 2 == 0 { &a } else { &b };
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    // One server's offset is good at the other at once, even if that has not noticed the write yet.
    let fresh = a.get(&format!("{PAGES}?offset=now")).await.next_offset();
    assert_eq!(b.get(&format!("{PAGES}?offset={fresh}")).await.status, 200);
    for stream in [PAGES.to_owned(), format!("{PAGES}?organizationId=acme"), "/v1/activities".to_owned()] {
        let separator = if stream.contains('?') { '&' } else { '?' };
        let mut offset = "-1".to_owned();
        loop {
            let path = format!("{stream}{separator}offset={offset}");
            let (from_a, from_b) = (a.get(&path).await, b.get(&path).await);
            assert_eq!((&from_a.body, from_a.header("etag")), (&from_b.body, from_b.header("etag")));
            offset = from_a.next_offset();
            if from_a.up_to_date() {
                break;
            }
        }
    }
    // Writes through one are followed through the other.
    let mut events = b.events(&format!("{PAGES}?offset=now&live=sse"), &[]).await;
    events.control().await;
    a.make_page("news", "t-news").await;
    assert_eq!(events.messages().await.0[0]["key"], "news");
}

#[tokio::test]
async fn a_list_and_its_offset_lose_nothing() {
    let bourn = Bourn::start(&[SMALL_CHUNKS]).await;
    let client = bourn.client();
    let writer = tokio::spawn({
        let client = bourn.client();
        async move {
            for i in 0..300 {
                client.make_page(&format!("p{i:03}"), &format!("t{i}")).await;
            }
        }
    });
    for _ in 0..30 {
        let list = client.get(PAGES).await;
        let have: std::collections::HashSet<String> =
            list.messages().iter().map(|row| row["id"].to_string()).collect();
        let (follow, _) = client.read_all(PAGES, &list.next_offset()).await;
        let follow: std::collections::HashSet<String> =
            follow.iter().map(|message| message["key"].to_string()).collect();
        let now = client.get(PAGES).await.messages().len();
        assert!(
            have.len() + follow.difference(&have).count() + 5 >= now,
            "the list and what follows it cover the table"
        );
        let union: std::collections::BTreeSet<_> = have.union(&follow).collect();
        assert_eq!(
            union.len(),
            union.iter().next_back().map_or(0, |id| id
                .trim_matches(&['"', 'p'][..])
                .parse::<usize>()
                .unwrap()
                + 1),
            "without gaps"
        );
    }
    writer.await.unwrap();
}
