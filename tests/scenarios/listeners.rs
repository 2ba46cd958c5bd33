//! Listeners beside the first one: for operators, for caches, and over TLS with certificates that change.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::tokens::{issuer_with_secret, token, unix_secs};
use crate::support::{Answer, Bourn, Client, eventually, free_port};

const ROLES: &str = "[[access.role]]\nname = 'member'\nread = ['page']\nwrite = ['page']\nstreams = { 'chats/{scope}/**' = 'rac' }\n";
const ACME: &str = "/v1/scopes/acme/entities/pages?offset=-1";

/// The configuration of one listener more.
fn listener(port: u16, more: &str) -> String {
    format!("[[listener]]\naddress = '127.0.0.1:{port}'\n{more}\n")
}

fn client(port: u16) -> Client {
    Client::new(&format!("127.0.0.1:{port}"))
}

#[tokio::test]
async fn figures_and_details_are_for_operators_alone_where_they_have_a_listener() {
    let port = free_port();
    let bourn = Bourn::start_with(&listener(port, "role = 'admin'"), &[], |_| {}).await;
    let (public, admin) = (bourn.client(), client(port));
    assert!(admin.get("/metrics").await.text().contains("bourn_requests_total"));
    assert!(admin.get("/ready").await.json()["entities"].is_array());
    assert_eq!(public.get("/ready").await.json(), json!({ "status": "ready" }));
    public.get("/metrics").await.assert_error(404, "UNKNOWN_PATH");
    admin.get("/v1/entities/pages?offset=-1").await.assert_error(404, "UNKNOWN_PATH");
    assert_eq!(public.get("/v1/entities/pages?offset=-1").await.status, 200);
    for each in [&public, &admin] {
        assert_eq!(each.get("/health").await.status, 200);
        each.get("/v1/authorize").await.assert_error(404, "UNKNOWN_PATH");
    }
}

async fn asks(edge: &Client, method: &str, uri: &str, more: &[(&str, &str)]) -> Answer {
    let headers = [&[("x-original-uri", uri), ("x-original-method", method)], more].concat();
    edge.get_with("/v1/authorize", &headers).await
}

#[tokio::test]
async fn an_edge_asks_for_a_request_what_the_request_would_be_told() {
    let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
    let config = issuer_with_secret(directory.path()) + ROLES + &listener(port, "role = 'edge'");
    let bourn = Bourn::start_with(&config, &[], |_| {}).await;
    let edge = client(port);
    let bearer = |more| format!("Bearer {}", token(&more));
    let member = bearer(json!({ "role": "member", "scopes": ["acme"] }));
    let member = [("authorization", member.as_str())];
    for (uri, status, code) in [
        (ACME, 204, ""),
        ("/v1/entities/pages?organizationId=acme&offset=-1&live=long-poll", 204, ""),
        ("/v1/entities/pages?organizationId=acme", 204, ""),
        ("/v1/stream/chats/acme/one", 204, ""),
        ("/v1/transactions/t1", 204, ""),
        ("/v1/entities/pages/p1", 204, ""),
        ("/v1/scopes/globex/entities/pages?offset=-1", 403, "SCOPE_FORBIDDEN"),
        ("/v1/entities/pages?offset=-1", 403, "SCOPE_REQUIRED"),
        ("/v1/scopes/acme/entities/attachments?offset=-1", 403, "RIGHT_MISSING"),
        ("/v1/scopes/acme/activities?offset=-1", 403, "RIGHT_MISSING"),
        ("/v1/scopes/acme/entities/pages?offset=-1&oldValues=true", 403, "RIGHT_MISSING"),
        ("/v1/stream/chats/globex/one", 403, "RIGHT_MISSING"),
        // Whatever else is wrong with it, nothing that is kept is given out for it.
        ("/v1/scopes/acme/entities/nothing?offset=-1", 403, "NOTHING_TO_READ"),
        ("/v1/scopes/acme/entities/pages?offset=bad", 403, "NOTHING_TO_READ"),
        ("/v1/scopes/acme/entities/pages?offset=-1&x=1", 403, "NOTHING_TO_READ"),
        ("/v1/scopes/acme/entities/%70ages?offset=-1", 403, "NOTHING_TO_READ"),
        ("/v1/scopes/acme/entities/pages?offset=-1&&", 403, "NOTHING_TO_READ"),
        ("/v1/scopes/acme/../globex/entities/pages?offset=-1", 403, "NOTHING_TO_READ"),
        ("/nothing", 403, "NOTHING_TO_READ"),
    ] {
        let answer = asks(&edge, "GET", uri, &member).await;
        match code {
            "" => assert_eq!(answer.status, status, "{uri}: {}", answer.text()),
            code => answer.assert_error(status, code),
        }
    }
    asks(&edge, "GET", ACME, &[]).await.assert_error(401, "TOKEN_MISSING");
    asks(&edge, "GET", ACME, &[("authorization", "Bearer x.y.z")]).await.assert_error(401, "TOKEN_INVALID");
    // What needs no token is asked for without one: a browser's preflight shows none.
    assert_eq!(asks(&edge, "OPTIONS", ACME, &[]).await.status, 204);
    assert_eq!(asks(&edge, "GET", "/health", &[]).await.status, 204);
    // Two names for the request could be two requests.
    let two = [member[0], ("x-forwarded-uri", "/v1/scopes/globex/entities/pages?offset=-1")];
    asks(&edge, "GET", ACME, &two).await.assert_error(403, "NOTHING_TO_READ");
    edge.get_with("/v1/authorize", &member).await.assert_error(403, "NOTHING_TO_READ");
    // The permission ends with the token.
    let short = bearer(json!({ "role": "member", "scopes": ["acme"], "exp": unix_secs() + 4 }));
    let answer = asks(&edge, "GET", ACME, &[("authorization", &short)]).await;
    let age: u64 = answer.header("cache-control").strip_prefix("private, max-age=").unwrap().parse().unwrap();
    assert!((1..=4).contains(&age), "{age}");
    assert_eq!(answer.header("x-accel-expires"), "", "a cache must not keep it for other tokens");

    let row = json!({ "id": "p1", "organization_id": "acme", "name": "x" });
    assert_eq!(bourn.client().post("/v1/entities/pages", &member, &row).await.status, 201);
    // Caches with rules obey these headers; on other listeners nothing says that an answer may be shared.
    let kept = edge.get_with(ACME, &member).await;
    let first = kept.headers.keys().next().unwrap().as_str();
    assert_eq!((kept.status, first), (200, "x-accel-expires"));
    assert!(kept.header("cache-control").starts_with("private"));
    assert!(kept.header("cdn-cache-control").starts_with("public"));
    let own = bourn.client().get_with(ACME, &member).await;
    assert_eq!((own.header("x-accel-expires"), own.header("cdn-cache-control")), ("", ""));
    assert_eq!(own.body, kept.body);
    let rows = edge.get_with("/v1/entities/pages?organizationId=acme", &member).await;
    assert_eq!((rows.status, rows.header("x-accel-expires")), (200, ""), "a list is not kept");
    for spelled in
        ["/v1/scopes/acme/entities/%70ages?offset=-1", "/v1/entities/pages?organization%49d=acme&offset=-1"]
    {
        edge.get_with(spelled, &member).await.assert_error(400, "URL_NOT_CANONICAL");
        assert_eq!(bourn.client().get_with(spelled, &member).await.status, 200, "{spelled}");
    }
}

/// Runs openssl in a directory.
fn openssl(directory: &Path, arguments: &str) {
    let made = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// Makes an authority, and a certificate of it for this machine's own name.
fn certificate(directory: &Path, name: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(
        directory,
        &format!("req -x509 {key} -subj /CN={name}-ca -keyout {name}-ca.key -out {name}-ca.pem"),
    );
    openssl(directory, &format!("req {key} -subj /CN=localhost -keyout {name}.key -out {name}.csr"));
    std::fs::write(directory.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA {name}-ca.pem -CAkey {name}-ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
        ),
    );
}

/// What curl gets, or the code with which it fails.
async fn curl(directory: &Path, arguments: &str) -> Result<String, i32> {
    let run = tokio::process::Command::new("curl")
        .current_dir(directory)
        .args(["-s", "--max-time", "10"])
        .args(arguments.split(' '))
        .output()
        .await
        .unwrap();
    match run.status.success() {
        true => Ok(String::from_utf8(run.stdout).unwrap()),
        false => Err(run.status.code().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_changed_while_clients_are_served() {
    let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
    let files = directory.path();
    certificate(files, "old");
    certificate(files, "new");
    let copy = |from: &str, to: &str| std::fs::copy(files.join(from), files.join(to)).unwrap();
    copy("old.pem", "cert.pem");
    copy("old.key", "key.pem");
    let tls = format!("tls = {{ certificate = '{0}/cert.pem', key = '{0}/key.pem' }}", files.display());
    let bourn = Bourn::start_with(&listener(port, &format!("role = 'edge'\n{tls}")), &[], |_| {}).await;
    let url = format!("https://localhost:{port}");
    let health = |ca: &str| format!("--cacert {ca}-ca.pem {url}/health");
    assert_eq!(curl(files, &health("old")).await, Ok(r#"{"status":"ok"}"#.into()));
    assert_eq!(curl(files, &health("new")).await, Err(60), "another authority");
    // Plain HTTP is told what the port speaks.
    let plain = curl(files, &format!("http://localhost:{port}/health")).await.unwrap();
    assert!(plain.contains("https://"), "{plain}");

    // A reader that follows through the change.
    let follow = format!("--cacert old-ca.pem -N --max-time 6 {url}/v1/entities/pages?offset=-1&live=sse");
    let follow = tokio::spawn({
        let files = files.to_owned();
        async move {
            let run = tokio::process::Command::new("curl")
                .current_dir(&files)
                .arg("-s")
                .args(follow.split(' '))
                .output();
            String::from_utf8(run.await.unwrap().stdout).unwrap()
        }
    });
    std::fs::write(files.join("cert.pem"), "broken").unwrap();
    eventually("a broken file is told", async || bourn.log().contains("the old one stays")).await;
    assert!(curl(files, &health("old")).await.is_ok(), "a broken certificate changes nothing");
    copy("new.key", "key.pem");
    copy("new.pem", "cert.pem");
    eventually("the new certificate is served", async || curl(files, &health("new")).await.is_ok()).await;
    assert_eq!(curl(files, &health("old")).await, Err(60));
    bourn.client().make_page("late", "t-late").await;
    let events = follow.await.unwrap();
    assert!(events.contains(r#""key":"late""#), "the reader of before goes on: {events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_may_ask_for_certificates_of_its_clients() {
    let (port, directory) = (free_port(), tempfile::tempdir().unwrap());
    let files = directory.path();
    certificate(files, "server");
    certificate(files, "edge");
    let tls = format!(
        "role = 'edge'\nclient_ca = '{0}/edge-ca.pem'\ntls = {{ certificate = '{0}/server.pem', key = '{0}/server.key' }}",
        files.display()
    );
    let _bourn = Bourn::start_with(&listener(port, &tls), &[], |_| {}).await;
    let health = format!("--cacert server-ca.pem https://localhost:{port}/health");
    assert!(curl(files, &health).await.is_err(), "without a certificate");
    assert!(
        curl(files, &format!("--cert server.pem --key server.key {health}")).await.is_err(),
        "of another authority"
    );
    assert!(curl(files, &format!("--cert edge.pem --key edge.key {health}")).await.is_ok());
}

#[tokio::test]
async fn a_listener_without_a_usable_certificate_keeps_the_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path();
    certificate(files, "one");
    certificate(files, "two");
    for (certificate, key, words) in [
        ("missing.pem", "one.key", "cannot use"),
        ("one.key", "one.key", "it has no certificate"),
        ("one.pem", "two.key", "cannot serve TLS with"),
    ] {
        let tls = format!(
            "role = 'edge'\ntls = {{ certificate = '{0}/{certificate}', key = '{0}/{key}' }}",
            files.display()
        );
        let config = files.join("bourn.toml");
        std::fs::write(&config, listener(free_port(), &tls)).unwrap();
        let database = crate::support::sqlite_url(&files.join("never.db"));
        let settings = [("config", config.to_str().unwrap())];
        let error = Bourn::try_begin_on(&database, &settings).await.err().unwrap();
        assert!(error.contains(words), "{certificate}: {error}");
        assert!(!files.join("never.db").exists(), "nothing is made before the addresses are taken");
    }
}
