//! The README's samples, run as they stand there. Only the server's address and the place of its file are the test's own.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Bourn, PATIENCE};

/// The samples of one kind: what follows the fence's three ticks, and what is between the fences.
fn samples(kind: &str) -> Vec<String> {
    let readme = include_str!("../../README.md");
    let fence = format!("```{kind}\n");
    readme.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// Runs shell lines on the demo server and its file; gives what they print.
async fn shell(bourn: &Bourn, script: &str) -> String {
    let script =
        script.replace("127.0.0.1:4437", bourn.address()).replace("curl ", "curl -sS --fail-with-body ");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(bourn.database().parent().unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends in time").unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

/// Whether the lines of a sample are for a running demo server.
fn is_for_the_demo(sample: &str) -> bool {
    sample.contains("127.0.0.1:4437") && !sample.contains("psql")
}

#[tokio::test]
async fn every_sample_for_a_shell_works_as_it_stands_in_the_readme() {
    // An event stream ends in a moment here, and not in a minute.
    let bourn = Bourn::start(&[("sse_lifetime", "1s"), ("sse_lifetime_jitter", "0s")]).await;
    let mut run = 0;
    for sample in samples("sh").iter().filter(|sample| is_for_the_demo(sample)) {
        shell(&bourn, sample).await;
        run += 1;
    }
    assert!(run >= 3, "the README has lost its samples, or they are fenced otherwise: {run}");
    let [follow] = &samples("sh follow")[..] else { panic!("one sample follows") };
    let printed = shell(&bourn, follow).await;
    assert!(printed.contains("Hello from SQL") && printed.contains("event: control"), "{printed}");
    // Repeated, a write changes nothing and says so.
    let write = samples("sh").into_iter().find(|sample| sample.contains("make-p1")).unwrap();
    let write =
        write.lines().filter(|line| line.starts_with("B=") || line.contains("-d '")).collect::<Vec<_>>();
    let again = shell(&bourn, &write.join("\n").replace("curl ", "curl -i ")).await;
    assert!(again.to_lowercase().contains("x-idempotent-hit: true"), "{again}");
}

#[tokio::test]
async fn every_sample_for_a_browser_works_as_it_stands_in_the_readme() {
    let bourn = Bourn::start(&[]).await;
    let client = bourn.client();
    for i in 0..5 {
        client.make_page(&format!("p{i}"), &format!("t{i}")).await;
    }
    let ([console], [page]) = (&samples("js console")[..], &samples("js client")[..]) else {
        panic!("one sample for a console, and one for a page")
    };
    let output = Command::new("node")
        .args(["readme.js", &format!("http://{}", bourn.address()), console, page])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser"))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, output).await.expect("it ends in time").unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let seen: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(seen[0]["console"].as_array().unwrap().contains(&json!("table")), "{printed}");
    assert_eq!(seen[1], json!({ "listed": 5, "name": "changed", "gone": true }));
}
