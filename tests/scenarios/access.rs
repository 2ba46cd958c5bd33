//! What a token's bearer may do: by scope, by entity type, by column, by path; and what strangers are told, which is nothing.

use serde_json::{Value, json};

use crate::support::tokens::{issuer_with_secret, token, unix_secs};
use crate::support::{Answer, Bourn, Client, Event, eventually, sqlite3};

const ROLES: &str = "[[access.role]]\nname = 'member'\nread = ['page', 'attachment']\nwrite = ['page']\n\
     read_only_columns = { page = ['content'] }\nundo = 'own'\n\
     streams = { 'chats/{scope}/**' = 'rac', 'users/{sub}/*' = 'racd' }\n\
     [[access.role]]\nname = 'auditor'\nread = ['page', 'attachment']\nhistory = true\nundo = 'scope'\nwrite = ['page', 'attachment']\n\
     [[access.role]]\nname = 'guest'\nread = ['page']\nscopes = ['public']\n";
const PAGES: &str = "/v1/entities/pages";
const ACME: &str = "/v1/scopes/acme/entities/pages";

/// A client that shows a token.
struct As {
    client: Client,
    bearer: String,
}

impl As {
    fn new(bourn: &Bourn, more: &Value) -> As {
        As { client: bourn.client(), bearer: format!("Bearer {}", token(more)) }
    }

    fn member(bourn: &Bourn, sub: &str, scopes: &[&str]) -> As {
        As::new(bourn, &json!({ "sub": sub, "role": "member", "scopes": scopes }))
    }

    fn auditor(bourn: &Bourn, scopes: &[&str]) -> As {
        As::new(bourn, &json!({ "sub": "audit", "role": "auditor", "scopes": scopes }))
    }

    fn headers<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [&[("authorization", self.bearer.as_str())], more].concat()
    }

    async fn get(&self, path: &str) -> Answer {
        self.client.get_with(path, &self.headers(&[])).await
    }

    async fn create(&self, id: &str, scope: &str, transaction: &str) -> Answer {
        let row = json!({ "id": id, "organization_id": scope, "name": id });
        self.client.post(PAGES, &self.headers(&[("x-transaction-id", transaction)]), &row).await
    }

    async fn change(&self, id: &str, columns: &Value, transaction: &str) -> Answer {
        let path = format!("{PAGES}/{id}");
        self.client.patch(&path, &self.headers(&[("x-transaction-id", transaction)]), columns).await
    }

    async fn delete(&self, id: &str) -> Answer {
        self.client.delete(&format!("{PAGES}/{id}"), &self.headers(&[])).await
    }

    async fn undo(&self, transaction: &str) -> Answer {
        let path = format!("/v1/transactions/{transaction}/rollback");
        self.client.post(&path, &self.headers(&[]), &Value::Null).await
    }
}

async fn start(more: &str) -> (Bourn, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let config =
        issuer_with_secret(directory.path()).replace("mode = 'token'", &format!("mode = 'token'\n{more}"));
    (Bourn::start_with(&(config + ROLES), &[("chunk_messages", "4")], |_| {}).await, directory)
}

#[tokio::test]
async fn a_scope_is_read_by_those_whose_token_is_for_it_and_the_url_alone_says_what_is_read() {
    let (bourn, _directory) = start("").await;
    let (alice, bob) = (As::member(&bourn, "alice", &["acme"]), As::member(&bourn, "bob", &["globex"]));
    for i in 0..12 {
        assert_eq!(alice.create(&format!("canary-{i}"), "acme", &format!("t{i}")).await.status, 201);
    }
    bob.create("g1", "globex", "tg").await;
    alice.get("/v1/transactions/t11?wait=20").await;
    for query in ["", "?offset=-1", "?offset=now", "?offset=now&live=sse", "?offset=-1&live=long-poll"] {
        alice.get(&format!("{PAGES}{query}")).await.assert_error(403, "SCOPE_REQUIRED");
        let of_acme = format!("{ACME}{query}");
        bob.get(&of_acme).await.assert_error(403, "SCOPE_FORBIDDEN");
    }
    let twice = alice.get(&format!("{ACME}?organizationId=acme")).await;
    twice.assert_error(400, "INVALID_PARAMETER");
    // A sealed chunk, twice, so that it is answered from memory; then a stranger asks for it.
    let first = alice.get(&format!("{ACME}?offset=-1")).await;
    let sealed = format!("{ACME}?offset={}", first.next_offset());
    let chunk = alice.get(&sealed).await;
    assert_eq!(chunk.header("cache-control"), "private, max-age=31536000, immutable");
    for i in 0..50 {
        let reader = As::member(&bourn, &format!("reader{i}"), &["initech", "acme"]);
        let again = reader.get(&sealed).await;
        assert_eq!((again.status, &again.body), (200, &chunk.body), "one URL has one content");
        assert_eq!(again.header("etag"), chunk.header("etag"));
    }
    let stranger = bob.get(&sealed).await;
    stranger.assert_error(403, "SCOPE_FORBIDDEN");
    assert_eq!(stranger.header("cache-control"), "no-store");
    bourn.client().get(&sealed).await.assert_error(401, "TOKEN_MISSING");
    // Rows of other scopes are not told from rows that are not there.
    let (foreign, absent) =
        (bob.get(&format!("{PAGES}/canary-1")).await, bob.get(&format!("{PAGES}/nothing")).await);
    foreign.assert_error(404, "NOT_FOUND");
    assert_eq!(foreign.text().replace("canary-1", "nothing"), absent.text());
    assert_eq!(alice.get(&format!("{PAGES}/canary-1")).await.status, 200);
    // The history takes a right of its own, and so do old values.
    let auditor = As::auditor(&bourn, &["acme"]);
    alice.get("/v1/scopes/acme/activities").await.assert_error(403, "RIGHT_MISSING");
    alice.get(&format!("{ACME}?offset=-1&oldValues=true")).await.assert_error(403, "RIGHT_MISSING");
    auditor.get("/v1/activities").await.assert_error(403, "SCOPE_REQUIRED");
    let history = auditor.get("/v1/scopes/acme/activities?limit=1").await;
    assert_eq!(history.json()[0]["subject"], "alice", "the audit trail names the caller");
    alice.change("canary-0", &json!({ "name": "new" }), "u0").await;
    alice.get("/v1/transactions/u0?wait=20").await;
    let (changes, _) = alice.client.read_all_with(ACME, "-1", &alice.headers(&[])).await;
    assert!(changes.iter().all(|change| change.get("old_value").is_none()), "not without being asked for");
    let url = format!("{ACME}?oldValues=true");
    let (with_old, _) = auditor.client.read_all_with(&url, "-1", &auditor.headers(&[])).await;
    assert_eq!(with_old.last().unwrap()["old_value"]["name"], "canary-0");
    assert_eq!(with_old.len(), changes.len());
}

#[tokio::test]
async fn a_row_is_written_by_those_who_may_write_where_it_was_and_where_it_ends() {
    let (bourn, _directory) = start("").await;
    let alice = As::member(&bourn, "alice", &["acme"]);
    let both = As::member(&bourn, "carol", &["acme", "globex"]);
    let bob = As::member(&bourn, "bob", &["globex"]);
    assert_eq!(alice.create("a1", "acme", "t1").await.status, 201);
    assert_eq!(bob.create("g1", "globex", "t2").await.status, 201);
    alice.create("a2", "globex", "t3").await.assert_error(403, "SCOPE_FORBIDDEN");
    // Nothing is told of a row of another scope: not that it is there, not what it holds.
    alice.create("g1", "globex", "t4").await.assert_error(403, "SCOPE_FORBIDDEN");
    alice.change("g1", &json!({ "name": "x" }), "t5").await.assert_error(404, "NOT_FOUND");
    alice.delete("g1").await.assert_error(404, "NOT_FOUND");
    let expected = [("x-transaction-id", "t6"), ("x-expected-transaction-id", "wrong")];
    let conflict =
        alice.client.patch(&format!("{PAGES}/g1"), &alice.headers(&expected), &json!({ "name": "x" })).await;
    conflict.assert_error(404, "NOT_FOUND");
    // A move takes both.
    alice
        .change("a1", &json!({ "organization_id": "globex" }), "t7")
        .await
        .assert_error(403, "SCOPE_FORBIDDEN");
    assert_eq!(both.change("a1", &json!({ "organization_id": "globex" }), "t8").await.status, 200);
    alice.change("a1", &json!({ "name": "x" }), "t9").await.assert_error(404, "NOT_FOUND");
    assert_eq!(both.change("a1", &json!({ "organization_id": "acme" }), "t10").await.status, 200);
    // What counts is the scope that is stored, whatever a trigger makes of it.
    let trigger = "CREATE TRIGGER stray AFTER UPDATE OF name ON pages WHEN NEW.name = 'stray' \
                   BEGIN UPDATE pages SET organization_id = 'globex' WHERE id = NEW.id; END; \
                   CREATE TRIGGER stray_new AFTER INSERT ON pages WHEN NEW.name = 'stray' \
                   BEGIN UPDATE pages SET organization_id = 'globex' WHERE id = NEW.id; END;";
    sqlite3(bourn.database(), trigger);
    alice.change("a1", &json!({ "name": "stray" }), "t11").await.assert_error(403, "SCOPE_FORBIDDEN");
    alice.create("stray", "acme", "t12").await.assert_error(403, "SCOPE_FORBIDDEN");
    let rows = sqlite3(
        bourn.database(),
        "SELECT group_concat(id || ' ' || organization_id || ' ' || name) FROM (SELECT * FROM pages ORDER BY id)",
    );
    assert_eq!(rows, "a1 acme a1,g1 globex g1", "what is refused is not written");
    // Columns and types that the role does not write.
    alice.change("a1", &json!({ "content": "x" }), "t13").await.assert_error(403, "COLUMN_FORBIDDEN");
    let attachment = json!({ "id": "x", "organization_id": "acme", "filename": "f" });
    let refused = alice.client.post("/v1/entities/attachments", &alice.headers(&[]), &attachment).await;
    refused.assert_error(403, "RIGHT_MISSING");
    // A transaction is its writer's: for others it is not there, and its id says nothing.
    assert_eq!(alice.get("/v1/transactions/t1?wait=20").await.json()["state"], "confirmed");
    bob.get("/v1/transactions/t1").await.assert_error(404, "UNKNOWN_TRANSACTION");
    bob.get("/v1/transactions/nothing").await.assert_error(404, "UNKNOWN_TRANSACTION");
    assert_eq!(As::auditor(&bourn, &["acme"]).get("/v1/transactions/t1").await.status, 200);
    As::auditor(&bourn, &["globex"])
        .get("/v1/transactions/t1")
        .await
        .assert_error(404, "UNKNOWN_TRANSACTION");
    bob.create("a1", "globex", "t1").await.assert_error(422, "TRANSACTION_REUSED");
    let again = alice.create("a1", "acme", "t1").await;
    assert_eq!((again.status, again.header("x-idempotent-hit")), (201, "true"));
    // Undoing: one's own, or all in the scopes.
    assert_eq!(alice.change("a1", &json!({ "name": "mine" }), "m1").await.status, 200);
    alice.get("/v1/transactions/m1?wait=20").await;
    bob.undo("m1").await.assert_error(404, "UNKNOWN_TRANSACTION");
    both.undo("m1").await.assert_error(403, "RIGHT_MISSING");
    As::auditor(&bourn, &["globex"]).undo("m1").await.assert_error(404, "UNKNOWN_TRANSACTION");
    assert_eq!(alice.undo("m1").await.status, 200);
    assert_eq!(alice.get(&format!("{PAGES}/a1")).await.json()["name"], "a1");
    assert_eq!(alice.change("a1", &json!({ "name": "again" }), "m2").await.status, 200);
    alice.get("/v1/transactions/m2?wait=20").await;
    assert_eq!(As::auditor(&bourn, &["acme"]).undo("m2").await.status, 200);
}

#[tokio::test]
async fn stored_streams_are_used_by_the_patterns_of_a_role() {
    let (bourn, _directory) = start("").await;
    let alice = As::member(&bourn, "alice", &["acme"]);
    let json = [("content-type", "application/json")];
    let put = async |path: &str, more: &[(&str, &str)]| {
        let headers = alice.headers(&[&json, more].concat());
        let url = format!("/v1/stream/{path}");
        alice.client.try_send(http::Method::PUT, &url, &headers, bytes::Bytes::new()).await.unwrap()
    };
    assert_eq!(put("chats/acme/room", &[]).await.status, 201);
    assert_eq!(put("users/alice/drafts", &[]).await.status, 201);
    for foreign in
        ["chats/globex/room", "chats", "users/bob/drafts", "users/alice/a/b", "other", "chats/%61cme2/x"]
    {
        put(foreign, &[]).await.assert_error(403, "RIGHT_MISSING");
    }
    // However it is spelled, it is the decoded path that counts.
    assert_eq!(put("chats/%61cme/room2", &[]).await.status, 201);
    put("chats/acme%2F..%2Fglobex/room", &[]).await.assert_error(400, "INVALID_PATH");
    // A fork reads its source.
    let from = [("stream-forked-from", "/v1/stream/chats/globex/room")];
    put("chats/acme/fork", &from).await.assert_error(403, "RIGHT_MISSING");
    let append = alice.client.post("/v1/stream/chats/acme/room", &alice.headers(&[]), &json!([1])).await;
    assert_eq!(append.status, 204, "{}", append.text());
    let read = alice.get("/v1/stream/chats/acme/room?offset=-1").await;
    assert_eq!((read.status, read.text()), (200, "[1]"));
    assert!(!read.header("cache-control").contains("public"), "{}", read.header("cache-control"));
    alice
        .client
        .delete("/v1/stream/chats/acme/room", &alice.headers(&[]))
        .await
        .assert_error(403, "RIGHT_MISSING");
    let bob = As::member(&bourn, "bob", &["globex"]);
    bob.get("/v1/stream/chats/acme/room?offset=-1").await.assert_error(403, "RIGHT_MISSING");
    bob.get("/v1/stream/chats/acme/nothing").await.assert_error(403, "RIGHT_MISSING");
    // A subscription lies within what may be read.
    let subscribe = async |of: &As, id: &str, pattern: &str| {
        let wanted = json!({ "type": "pull-wake", "pattern": pattern, "wake_stream": "users/alice/wakes" });
        let url = format!("/v1/stream/__ds/subscriptions/{id}");
        let headers = of.headers(&json);
        of.client.try_send(http::Method::PUT, &url, &headers, wanted.to_string().into()).await.unwrap()
    };
    assert_eq!(subscribe(&alice, "s1", "chats/acme/**").await.status, 201);
    for wider in ["chats/**", "**", "chats/*/room", "chats/globex/*"] {
        assert_eq!(subscribe(&alice, "s2", wider).await.status, 403, "{wider}");
    }
    assert_eq!(alice.get("/v1/stream/__ds/subscriptions/s1").await.status, 200);
    assert_eq!(bob.get("/v1/stream/__ds/subscriptions/s1").await.status, 404);
}

#[tokio::test]
async fn an_event_stream_ends_with_its_token_and_a_cookie_may_carry_one() {
    let (bourn, _directory) = start("cookie = 'session'\nanonymous = 'guest'").await;
    let alice = As::member(&bourn, "alice", &["acme"]);
    assert_eq!(alice.create("p1", "acme", "t1").await.status, 201);
    let expires = unix_secs() + 3;
    let short = token(&json!({ "role": "member", "scopes": ["acme"], "exp": expires }));
    let cookie = format!("theme=dark; session={short}");
    let url = format!("{ACME}?offset=-1&live=sse");
    let mut events = bourn.client().events(&url, &[("cookie", &cookie)]).await;
    let (messages, _) = events.messages().await;
    assert_eq!(messages[0]["key"], "p1");
    while events.next().await != Event::End {}
    let ended = unix_secs();
    assert!((expires - 1..=expires + 1).contains(&ended), "{ended} and {expires}");
    bourn.client().get_with(&url, &[("cookie", &cookie)]).await.assert_error(401, "TOKEN_EXPIRED");
    // No other site's page writes with it.
    let good = format!("session={}", token(&json!({ "role": "member", "scopes": ["acme"] })));
    let row = json!({ "id": "p2", "organization_id": "acme", "name": "n" });
    bourn.client().post(PAGES, &[("cookie", &good)], &row).await.assert_error(403, "RIGHT_MISSING");
    // What everybody may read is for every cache, and what not is not.
    sqlite3(bourn.database(), "INSERT INTO pages (id, organization_id, name) VALUES ('open', 'public', 'n')");
    let public = bourn.client();
    let listed = "/v1/scopes/public/entities/pages";
    eventually("it is listed", async || public.get(listed).await.text().contains("open")).await;
    eventually("it is public", async || {
        let read = public.get(&format!("{listed}?offset=-1")).await;
        read.status == 200 && read.header("cache-control") == "public, max-age=5"
    })
    .await;
    public.get(ACME).await.assert_error(403, "SCOPE_FORBIDDEN");
    assert_eq!(alice.get(&format!("{ACME}?offset=-1")).await.header("cache-control"), "private, max-age=5");
}

#[tokio::test]
async fn a_token_becomes_a_cookie_for_the_pages_of_known_origins() {
    let (bourn, _directory) = start("cookie = '__Host-bourn'\norigins = ['https://app.example']\n").await;
    let client = bourn.client();
    let member = As::member(&bourn, "alice", &["acme"]);
    member.create("p1", "acme", "t1").await;
    let page = ("origin", "https://app.example");
    let made = client.post("/v1/session", &member.headers(&[page]), &Value::Null).await;
    assert_eq!(made.status, 204, "{}", made.text());
    assert_eq!(made.header("access-control-allow-origin"), "https://app.example");
    assert_eq!(made.header("access-control-allow-credentials"), "true");
    let set = made.header("set-cookie").to_owned();
    for part in ["__Host-bourn=", "Path=/", "Secure", "HttpOnly", "SameSite=Strict", "Max-Age=3"] {
        assert!(set.contains(part), "{part}: {set}");
    }
    let cookie = set.split(';').next().unwrap().to_owned();
    let sent = [("cookie", cookie.as_str()), page];
    let read = client.get_with(&format!("{ACME}?offset=-1"), &sent).await;
    assert_eq!((read.status, read.messages().len()), (200, 1));
    assert_eq!((read.header("access-control-allow-credentials"), read.header("vary")), ("true", "origin"));
    // Answers that are at hand differ by origin, too, and a page of another one gets none with the cookie's leave.
    for (origin, allowed) in [("https://evil.example", ""), ("https://app.example", "true"), ("null", "")] {
        let read = client.get_with(&format!("{ACME}?offset=-1"), &[sent[0], ("origin", origin)]).await;
        assert_eq!(read.header("access-control-allow-credentials"), allowed, "{origin}");
        assert_eq!(read.header("vary"), "origin");
    }
    // No cookie writes, or makes another one.
    let row = json!({ "id": "p2", "organization_id": "acme", "name": "x" });
    client.post(PAGES, &sent, &row).await.assert_error(401, "TOKEN_MISSING");
    client.post("/v1/session", &sent, &Value::Null).await.assert_error(401, "TOKEN_MISSING");
    client.get_with("/v1/session", &member.headers(&[])).await.assert_error(405, "METHOD_NOT_ALLOWED");
    let ended = client.delete("/v1/session", &[sent[0]]).await;
    assert_eq!(ended.status, 204);
    assert!(
        ended.header("set-cookie").starts_with("__Host-bourn=; Max-Age=0;"),
        "{}",
        ended.header("set-cookie")
    );
    // Where no cookie is named there are no sessions.
    let (other, _directory) = start("").await;
    let member = As::member(&other, "alice", &["acme"]);
    let none = other.client().post("/v1/session", &member.headers(&[]), &Value::Null).await;
    none.assert_error(404, "UNKNOWN_PATH");
    assert_eq!(other.client().get("/health").await.header("vary"), "", "no answer depends on its origin");
}

#[tokio::test]
async fn a_reader_is_warned_before_its_token_ends_its_stream() {
    let (bourn, _directory) = start("").await;
    let now = unix_secs();
    let soon = As::new(&bourn, &json!({ "role": "member", "scopes": ["acme"], "exp": now + 6 }));
    let mut events = bourn.client().events(&format!("{ACME}?offset=now&live=sse"), &soon.headers(&[])).await;
    let mut warned = None;
    loop {
        match events.next().await {
            Event::End => break,
            Event::Auth(secs) => warned = Some(secs),
            _ => {}
        }
    }
    let secs = warned.expect("the reader is warned");
    assert!((3..=6).contains(&secs), "{secs}");
}

#[tokio::test]
async fn a_caller_asks_no_more_than_it_may_and_a_browser_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let limits = "[limits]\nrequests = '1/h'\nburst = 12\nlive_per_subject = 1\nlive_per_ip = 2\nauth_failures = '3/h'\n";
    let config = issuer_with_secret(directory.path()) + ROLES + limits;
    let bourn = Bourn::start_with(&config, &[], |_| {}).await;
    let client = bourn.client();
    let member = |sub| As::member(&bourn, sub, &["acme"]);
    let live = format!("{ACME}?offset=now&live=sse");

    // Live reads at once, of one caller and of one address.
    let (alice, bob, carol) = (member("alice"), member("bob"), member("carol"));
    let mut first = client.events(&live, &alice.headers(&[])).await;
    first.control().await;
    alice.get(&live).await.assert_error(429, "TOO_MANY_STREAMS");
    alice.get(&format!("{ACME}?offset=now&live=long-poll")).await.assert_error(429, "TOO_MANY_STREAMS");
    let mut second = client.events(&live, &bob.headers(&[])).await;
    second.control().await;
    carol.get(&live).await.assert_error(429, "TOO_MANY_STREAMS");
    // A native `EventSource` gives up for good at anything but an event stream: it is asked to come back.
    let resumed = carol.client.get_with(&live, &carol.headers(&[("last-event-id", "now")])).await;
    assert_eq!((resumed.status, resumed.header("content-type")), (200, "text/event-stream"));
    assert!(resumed.text().starts_with("retry: "), "{}", resumed.text());
    drop(second);
    eventually("the place of a reader that has gone is free", async || {
        let mut events = client.events(&live, &member("dave").headers(&[])).await;
        matches!(events.next().await, Event::Retry(_))
            && events.head.contains(" 200 ")
            && events.raw.len() > 20
    })
    .await;

    // Requests: what one caller has used up is another's still.
    let erin = member("erin");
    for _ in 0..12 {
        assert_eq!(erin.get(&format!("{ACME}?offset=-1")).await.status, 200);
    }
    let refused = erin.get(&format!("{ACME}?offset=-1")).await;
    refused.assert_error(429, "TOO_MANY_REQUESTS");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(member("frank").get(&format!("{ACME}?offset=-1")).await.status, 200);

    // Tokens that are not accepted: after some, the address is not listened to; a request without a token is no guess.
    for _ in 0..5 {
        client.get(&format!("{ACME}?offset=-1")).await.assert_error(401, "TOKEN_MISSING");
    }
    for i in 0..6 {
        let guess = client.get_with(ACME, &[("authorization", &format!("Bearer a.b.{i}"))]).await;
        let expected = if i < 4 { (401, "TOKEN_INVALID") } else { (429, "TOO_MANY_REQUESTS") };
        guess.assert_error(expected.0, expected.1);
    }
}
