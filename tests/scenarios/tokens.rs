//! Which tokens are accepted: those that an issuer of the configuration has signed, for this server, for now.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use crate::support::tokens::{
    ISS, Jwks, SECRET, SigningKey, claims, compact, issuer_with_secret, token, unix_secs, with_secret,
};
use crate::support::{Bourn, Client, eventually, free_port};

const ALL: &str = "[[access.role]]\nname = 'all'\nread = ['*']\nwrite = ['*']\nhistory = true\nundo = 'scope'\n\
                   scopes = ['*']\nstreams = { '**' = 'racd' }\n";
const PAGES: &str = "/v1/entities/pages";

async fn get(client: &Client, path: &str, token: &str) -> crate::support::Answer {
    client.get_with(path, &[("authorization", &format!("Bearer {token}"))]).await
}

/// A listener for operators, and its client.
fn operators() -> (String, Client) {
    let port = free_port();
    let listener = format!("[[listener]]\naddress = '127.0.0.1:{port}'\nrole = 'admin'\n");
    (listener, Client::new(&format!("127.0.0.1:{port}")))
}

#[tokio::test]
async fn only_what_its_issuer_signed_for_this_server_and_for_now_is_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, operator) = operators();
    let config = issuer_with_secret(directory.path()) + ALL + &listener;
    let bourn = Bourn::start_with(&config, &[], |_| {}).await;
    let client = bourn.client();
    let role = json!({ "role": "all" });
    let good = token(&role);
    assert_eq!(get(&client, PAGES, &good).await.status, 200);
    let missing = client.get(PAGES).await;
    missing.assert_error(401, "TOKEN_MISSING");
    assert_eq!((missing.header("www-authenticate"), missing.header("cache-control")), ("Bearer", "no-store"));
    assert_eq!(missing.header("access-control-allow-origin"), "*", "a page can read why");

    let with = |more: Value| {
        let mut all = role.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        token(&all)
    };
    let now = unix_secs();
    let many: Vec<String> = (0..1_001).map(|i| i.to_string()).collect();
    let unsigned = |alg: &str| compact(&json!({ "alg": alg }), &claims(&role).to_string(), |_| Vec::new());
    let payload = claims(&role).to_string();
    let twice = payload.replacen('{', "{\"role\":\"all\",", 1);
    let signed = |payload: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        compact(&json!({ "alg": "HS256" }), payload, |message| {
            ring::hmac::sign(&key, message).as_ref().into()
        })
    };
    let critical = {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
        let header = json!({ "alg": "HS256", "crit": ["b64"], "b64": false });
        compact(&header, &payload, |message| ring::hmac::sign(&key, message).as_ref().into())
    };
    assert_eq!(get(&client, PAGES, &signed(&payload)).await.status, 200, "the tests' own signing is right");
    for (what, bad) in [
        ("no signature", unsigned("none")),
        ("no signature", unsigned("HS256")),
        ("another algorithm", unsigned("RS256")),
        ("another secret", with_secret(b"another secret of thirty-two bytes", &claims(&role))),
        ("another issuer", with(json!({ "iss": "https://evil.example" }))),
        ("no issuer", with(json!({ "iss": null }))),
        ("several issuers", with(json!({ "iss": [ISS] }))),
        ("another audience", with(json!({ "aud": "other" }))),
        ("no audience", with(json!({ "aud": null }))),
        ("a time as text", with(json!({ "exp": (now + 60).to_string() }))),
        ("no end", with(json!({ "exp": null }))),
        ("no end in sight", with(json!({ "exp": now + 3 * 86_400 }))),
        ("no beginning", with(json!({ "iat": null }))),
        ("a beginning in an hour", with(json!({ "iat": now + 3_600 }))),
        ("not before an hour", with(json!({ "nbf": now + 3_600 }))),
        ("no subject", with(json!({ "sub": null }))),
        ("an empty subject", with(json!({ "sub": "" }))),
        ("an unknown role", with(json!({ "role": "boss" }))),
        ("no role", with(json!({ "role": null }))),
        ("a role of another type", with(json!({ "role": ["all"] }))),
        ("scopes of another type", with(json!({ "scopes": [1] }))),
        ("every scope", with(json!({ "scopes": ["*"] }))),
        ("too many scopes", with(json!({ "scopes": many }))),
        ("an unknown right", with(json!({ "bourn": { "scopes": { "acme": "rx" } } }))),
        ("a right twice", with(json!({ "bourn": { "scopes": { "acme": "rr" } } }))),
        ("an unknown grant", with(json!({ "bourn": { "scope": { "acme": "r" } } }))),
        ("a claim twice", signed(&twice)),
        ("claims that are no object", signed("[]")),
        ("a header that must be understood", critical),
        ("no token", "abc".into()),
        ("two parts", "a.b".into()),
        ("four parts", format!("{good}.x")),
        ("a tail", format!("{good}x")),
    ] {
        let answer = get(&client, PAGES, &bad).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        answer.assert_error(401, "TOKEN_INVALID");
    }
    get(&client, PAGES, &with(json!({ "iat": now - 120, "exp": now - 60 })))
        .await
        .assert_error(401, "TOKEN_EXPIRED");
    assert_eq!(
        get(&client, PAGES, &with(json!({ "iat": now + 20 }))).await.status,
        200,
        "a clock that is ahead"
    );
    let huge = get(&client, PAGES, &"a".repeat(1 << 20)).await;
    assert!(huge.status == 431 || huge.status == 401, "{}", huge.status);
    for bad in ["Basic YTpi", "Bearer", &good] {
        client.get_with(PAGES, &[("authorization", bad)]).await.assert_error(401, "TOKEN_INVALID");
    }
    let log = bourn.log();
    assert!(!log.contains(&good) && !log.contains(SECRET), "nothing secret is logged");
    assert!(!operator.get("/metrics").await.text().contains("alice"));
}

#[tokio::test]
async fn keys_are_published_and_change_and_an_issuer_may_be_away() {
    let jwks = Jwks::serve().await;
    let (listener, operator) = operators();
    let bourn = Bourn::start_with(&(jwks.issuer() + ALL + &listener), &[], |_| {}).await;
    let client = bourn.client();
    let role = json!({ "role": "all" });
    let (first, second) = (SigningKey::ec("first"), SigningKey::ed("second"));
    // The issuer hangs: the server serves what needs no key, and says what is missing.
    let answer = get(&client, PAGES, &first.token(&role)).await;
    answer.assert_error(503, "KEYS_UNAVAILABLE");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(operator.get("/ready").await.json()["issuers"][0]["state"], "keys_unavailable");
    jwks.answer("<html>garbage");
    eventually("the keys are read again", async || jwks.readings() > 2).await;
    get(&client, PAGES, &first.token(&role)).await.assert_error(503, "KEYS_UNAVAILABLE");
    jwks.publish(&[&first]);
    eventually("the keys are there", async || get(&client, PAGES, &first.token(&role)).await.status == 200)
        .await;
    assert_eq!(operator.get("/ready").await.json()["issuers"][0]["state"], "ready");
    // Another server, so that no cooldown is under way: a new key works at the first request that shows it.
    let other = Bourn::start_with(&(jwks.issuer() + ALL), &[], |_| {}).await;
    let client = other.client();
    eventually("the keys are there", async || get(&client, PAGES, &first.token(&role)).await.status == 200)
        .await;
    let known = first.token(&role);
    assert_eq!(get(&client, PAGES, &known).await.status, 200);
    jwks.publish(&[&second]);
    assert_eq!(get(&client, PAGES, &second.token(&role)).await.status, 200);
    get(&client, PAGES, &known).await.assert_error(401, "TOKEN_INVALID");
    // Made-up keys cost one reading at most, however many there are, and however they are called.
    let before = jwks.readings();
    let mut connection = client.connect().await.unwrap();
    for i in 0..1_000 {
        let kid = ["../../etc/passwd", "' OR 1=1 --", "http://evil.example/keys", "x"][i % 4];
        let bearer = format!("Bearer {}", second.token_named(&format!("{kid}{i}"), &role));
        let headers = [("authorization", &*bearer)];
        let answer = connection.send(Method::GET, PAGES, &headers, bytes::Bytes::new()).await.unwrap();
        answer.assert_error(401, "TOKEN_INVALID");
    }
    assert!(jwks.readings() - before <= 1, "{}", jwks.readings() - before);
    // A public key is no secret.
    let confused = with_secret(second.public(), &claims(&role));
    get(&client, PAGES, &confused).await.assert_error(401, "TOKEN_INVALID");
    // What is wrong with a token is not told from what another one is: keys of one issuer are not another's.
    let stranger = SigningKey::ec("second");
    get(&client, PAGES, &stranger.token(&role)).await.assert_error(401, "TOKEN_INVALID");
    // The issuer goes away: the last good keys stay.
    jwks.hang();
    assert_eq!(get(&client, PAGES, &second.token(&role)).await.status, 200);
}

#[tokio::test]
async fn every_route_asks_for_a_token_and_for_the_right() {
    let directory = tempfile::tempdir().unwrap();
    let none = "[[access.role]]\nname = 'none_of_it'\n";
    let bourn = Bourn::start_with(&(issuer_with_secret(directory.path()) + ALL + none), &[], |_| {}).await;
    let client = bourn.client();
    let now = unix_secs();
    let callers = [
        ("no token", None),
        (
            "foreign",
            Some(with_secret(b"another secret of thirty-two bytes", &claims(&json!({ "role": "all" })))),
        ),
        ("expired", Some(token(&json!({ "role": "all", "iat": now - 120, "exp": now - 60 })))),
        ("no right", Some(token(&json!({ "role": "none_of_it" })))),
    ];
    let document: Value = serde_json::from_str(include_str!("../../protocol/openapi.json")).unwrap();
    let mut table = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let url = path
            .replace("{table}", "pages")
            .replace("{scope}", "acme")
            .replace("/v1/stream/{path}", "/v1/stream/a/b")
            .replace("{path}", "a")
            .replace(['{', '}'], "");
        for method in ["get", "head", "post", "put", "patch", "delete"] {
            if methods.get(method).is_none() {
                continue;
            }
            let mut answers = Vec::new();
            for (_, token) in &callers {
                let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
                let mut headers = vec![("content-type", "application/json")];
                headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
                let verb = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let body = match path.contains("/subscriptions/") {
                    true => {
                        r#"{"type":"pull-wake","pattern":"a/*","wake_stream":"w","streams":["a"],"worker":"w"}"#
                    }
                    false => r#"{"id":"p1","organization_id":"acme","name":"n"}"#,
                };
                let answer = client.try_send(verb, &url, &headers, bytes::Bytes::from(body)).await.unwrap();
                assert!(!answer.text_lossy().contains("p1"), "{method} {path}");
                answers.push(answer.status.to_string());
            }
            table.insert(format!("{} {path}", method.to_uppercase()), answers.join(" "));
        }
    }
    let lines: Vec<String> = table.iter().map(|(route, answers)| format!("{answers}  {route}")).collect();
    assert_eq!(
        lines.join("\n"),
        include_str!("routes.txt").trim_end(),
        "no token, foreign, expired, no right"
    );
}
