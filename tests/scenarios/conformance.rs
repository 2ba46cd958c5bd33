//! The official conformance suite of the Durable Streams protocol, every test of it.

use serde_json::Value;

use crate::ground::Ground;

/// How many tests the pinned version has: a group that does not run fails here.
const TESTS: u64 = 338;

pub async fn the_official_conformance_suite_passes_whole<G: Ground>() {
    let ground = G::new();
    let bourn = ground.server(&[("long_poll_timeout", "1s"), ("webhook_allow_private", "true")]).await;
    let report = tempfile::NamedTempFile::new().unwrap();
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance");
    let output = tokio::process::Command::new("node")
        .args(["node_modules/vitest/vitest.mjs", "run", "--reporter=json", "--outputFile"])
        .arg(report.path())
        .env("BOURN_URL", format!("http://{}", bourn.address()))
        .current_dir(directory)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(300), output)
        .await
        .expect("the suite ends in time")
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report = std::fs::read_to_string(report.path()).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {said}"));
    let failed: Vec<&Value> = report["testResults"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|file| file["assertionResults"].as_array().unwrap())
        .filter(|test| test["status"] != "passed")
        .map(|test| &test["fullName"])
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!((&report["numTotalTests"], &report["numPassedTests"]), (&TESTS.into(), &TESTS.into()));
}
