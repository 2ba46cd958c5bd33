//! Bodies of rows: a `json` column keeps the text that was sent, a `jsonb` column what the database makes of it.

use bourn_testkit::Cluster;
use http::Method;

use crate::site::Site;

const JSON: (&str, &str) = ("content-type", "application/json");
const DOCUMENTS: &str = "/v1/entities/docs";

#[tokio::test(flavor = "multi_thread")]
async fn json_columns_get_the_text_that_was_sent() {
    let tables = "CREATE DOMAIN checked AS json CHECK (value IS NOT NULL); \
                  CREATE TABLE docs (id text PRIMARY KEY, data json, own checked DEFAULT '0', bin jsonb, list int[])";
    let site =
        Site::on(Cluster::shared(), tables, "[[entity]]\ntype = 'doc'\ntable = 'docs'\n").await.eager();
    let server = site.server().await;
    let client = server.client();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let values = [
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{"$serde_json::private::RawValue":"[1,2]"}"#,
        r#"[123456789012345678901234567890.00,1e400,-0.0]"#,
        r#"["\ud800","\u00e9","é","\/"]"#,
        r#""\u0061""#,
        &deep,
    ];
    for (i, value) in values.into_iter().enumerate() {
        let row = format!(r#"{{"id":"d{i}","data":{value},"own":{{"a":[1]}},"bin":null,"list":[1,[2]]}}"#);
        let row = row.replace("[1,[2]]", "[[1],[2]]");
        let made = client.send(Method::POST, DOCUMENTS, &[JSON], row.clone()).await;
        assert_eq!((made.status, made.text()), (201, row.as_str()));
        let held = site.sql(&format!("SELECT data::text FROM docs WHERE id = 'd{i}'"));
        assert_eq!(held.trim(), value);
    }
    let spaced = r#"{"data": {"b" : [1, 2],  "a":"x  y"}, "bin": {"b":1.50,"a":[1, 2],"b":2}}"#;
    let set = client.send(Method::PATCH, &format!("{DOCUMENTS}/d0"), &[JSON], spaced).await;
    assert!(set.text().contains(r#""data":{"b":[1,2],"a":"x  y"},"#), "{}", set.text());
    assert!(set.text().contains(r#""bin":{"a":[1,2],"b":2},"#), "{}", set.text());
    let held = site.sql("SELECT data::text FROM docs WHERE id = 'd0'");
    assert_eq!(held.trim(), r#"{"b" : [1, 2],  "a":"x  y"}"#);
    // What only the database's own form of JSON cannot hold.
    for bin in [r#""\ud800""#, "1e999999"] {
        let body = format!(r#"{{"bin":{bin}}}"#);
        let refused = client.send(Method::PATCH, &format!("{DOCUMENTS}/d0"), &[JSON], body).await;
        refused.assert_error(422, "CONSTRAINT_VIOLATED");
    }
    client
        .send(Method::PATCH, &format!("{DOCUMENTS}/d0"), &[JSON], r#"{"data":1,"data":2}"#)
        .await
        .assert_error(400, "INVALID_JSON");
    site.captured().await;
    let stream = client.get(&format!("{DOCUMENTS}?offset=-1")).await;
    assert!(values[1..].iter().all(|value| stream.text().contains(value)), "{}", stream.text());
}
