//! The life of a subscription without a database: wakes, leases, fences and retries.

use bourn_protocol::Seq;

use super::*;
use crate::streams::Segment;
use crate::streams::subscriptions::tails::StreamTail;

fn path(text: &str) -> StreamPath {
    StreamPath::new(text).unwrap()
}

fn at(position: u64) -> StreamOffset {
    StreamOffset { position: Seq::new(position).unwrap(), owner: u64::from(position > 0) }
}

/// A stream that owns all of its bytes.
fn tails(tail: u64) -> Tails {
    made_of(&[(1, 0, Seq::MAX.get())], StreamOffset { owner: 1, ..at(tail) })
}

/// A stream of these segments, each with its stream's number and its bounds.
fn made_of(segments: &[(u64, u64, u64)], end: StreamOffset) -> Tails {
    let bound = |at| Seq::new(at).unwrap();
    let segments =
        segments.iter().map(|&(stream, from, to)| Segment { stream, from: bound(from), to: bound(to) });
    Tails::from([(path("a"), StreamTail::new(segments.collect(), end))])
}

fn subscription(webhook: bool) -> Subscription {
    let configuration = SubscriptionConfiguration {
        pattern: None,
        streams: vec![path("a")],
        webhook: webhook.then(|| "https://example.com".into()),
        wake_stream: (!webhook).then(|| path("wakes")),
        lease_ttl_ms: 1_000,
        description: None,
    };
    let mut subscription = Subscription::new(configuration, 0);
    subscription.link(&path("a"), true, at(5), 10).unwrap();
    subscription
}

fn word(subscription: &Subscription, offset: u64, done: bool) -> WakeRequest {
    WakeRequest {
        wake_id: subscription.wake.as_ref().unwrap().id.clone(),
        generation: subscription.generation,
        acks: vec![Ack { stream: "a".into(), offset: at(offset).to_string() }],
        done,
    }
}

#[test]
fn work_wakes_once_and_again_when_more_has_come() {
    let mut s = subscription(true);
    assert!(!s.wake(&tails(5), 0), "what was there has been seen");
    assert!(s.wake(&tails(7), 0) && !s.wake(&tails(9), 0));
    let done = word(&s, 7, true);
    assert_eq!(s.acknowledge(1, &done, &tails(9), 10), Ok(true), "more had come");
    assert_eq!(s.generation, 2);
    assert_eq!(s.acknowledge(1, &done, &tails(9), 10), Err(Refusal::Fenced));
}

#[test]
fn an_acknowledgement_goes_forward_and_not_past_the_tail() {
    let mut s = subscription(true);
    s.wake(&tails(7), 0);
    let refused = |offset| {
        matches!(s.clone().acknowledge(1, &word(&s, offset, false), &tails(7), 1), Err(Refusal::Ack(_)))
    };
    assert!(refused(4) && refused(8) && !refused(7) && !refused(5));
}

#[test]
fn a_lease_that_ends_fences_its_worker_and_the_next_one_may_claim() {
    let mut s = subscription(false);
    assert_eq!(s.claim("one", &tails(5), 0), Err(Refusal::NoWork));
    s.claim("one", &tails(7), 0).unwrap();
    let late = word(&s, 7, true);
    let claimed = Refusal::Claimed { holder: "one".into(), generation: 1 };
    assert_eq!(s.claim("two", &tails(7), 999), Err(claimed));
    assert_eq!(
        s.acknowledge(1, &WakeRequest { done: false, acks: vec![], ..late.clone() }, &tails(7), 900),
        Ok(false)
    );
    assert_eq!(s.due_at(), Some(1_900), "a word from the worker extends the lease");
    s.claim("two", &tails(7), 1_900).unwrap();
    assert_eq!(s.acknowledge(1, &late, &tails(7), 1_950), Err(Refusal::Fenced));
    assert_eq!(s.release(2, &word(&s, 5, false), &tails(7), 1_960), Ok(true), "what is undone wakes again");
}

#[test]
fn a_webhook_that_fails_is_tried_again_later_and_later() {
    let mut s = subscription(true);
    s.wake(&tails(7), 0);
    let id = s.wake.as_ref().unwrap().id.clone();
    let mut waits = Vec::new();
    for _ in 0..8 {
        s.failed(&id, 0, 0.0);
        waits.push(s.next_attempt_at.unwrap());
        assert!(!s.retry(s.next_attempt_at.unwrap() - 1) && s.retry(i64::MAX));
    }
    assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
    assert!(!s.delivered("another", true, &tails(7), 0));
    assert!(!s.delivered(&id, true, &tails(7), 0) && s.wake.is_none(), "the snapshot is acknowledged");
    assert!(!s.wake(&tails(7), 0));
}

#[test]
fn a_named_stream_stays_where_a_pattern_finds_it_too() {
    let mut s = subscription(true);
    s.link(&path("a"), false, at(0), 10).unwrap();
    s.unlink(&path("a"));
    assert_eq!(s.describe_streams(None)[0]["link_type"], "glob");
    s.link(&path("b"), true, at(0), 2).unwrap();
    assert!(matches!(s.link(&path("c"), true, at(0), 2), Err(Refusal::TooMany(_))));
    s.unlink(&path("b"));
    assert!(!s.follows(&path("b")));
}

#[test]
fn a_place_of_another_stream_does_not_hide_what_is_in_this_one() {
    let place = |position, owner| StreamOffset { position: Seq::new(position).unwrap(), owner };
    let acked = |s: &Subscription| s.describe_streams(None)[0]["acked_offset"].as_str().unwrap().to_owned();
    let most = Seq::MAX.get();
    let mut s = subscription(true);
    s.links.get_mut("a").unwrap().acked = place(200, 1).to_string();
    // The database went back to 100, and twenty bytes were appended since.
    let restored = made_of(&[(1, 0, 100), (9, 100, most)], place(120, 9));
    s.rebase(&made_of(&[], StreamOffset::START));
    assert_eq!(acked(&s), place(200, 1).to_string(), "a stream that is missing may come back");
    s.rebase(&restored);
    assert_eq!(acked(&s), place(100, 1).to_string());
    assert!(s.wake(&restored, 0), "what was appended in place of what was lost");
    // A worker of an earlier wake acknowledges a place that was lost.
    let mut word = word(&s, 0, true);
    word.acks[0].offset = place(110, 1).to_string();
    assert!(matches!(s.acknowledge(1, &word, &restored, 1), Err(Refusal::Ack(_))));
    word.acks[0].offset = place(120, 9).to_string();
    assert_eq!(s.acknowledge(1, &word, &restored, 1), Ok(false));
    // Another stream was made at the path.
    let other = made_of(&[(12, 0, most)], place(7, 12));
    s.rebase(&other);
    assert_eq!(acked(&s), StreamOffset::START.to_string());
    assert!(s.wake(&other, 2));
}
