//! What the scenarios are built from: a server of one's own, a client, an event stream, another process.

#![allow(dead_code, reason = "each of the test targets uses its part")]

mod client;
mod disk;
mod events;
mod server;
mod state;
pub mod tokens;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use client::{Answer, Client};
#[allow(unused_imports, reason = "not all of the test targets need it")]
pub use disk::SmallDisk;
pub use events::{Event, Events};
pub use server::Bourn;
#[allow(unused_imports, reason = "only one of the test targets needs it")]
pub use server::sqlite_url;
#[allow(unused_imports, reason = "not all of the test targets need it")]
pub use state::{materialize, materialize_with_unknown_ends};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs SQL in another process: the `sqlite3` command.
pub fn sqlite3(database: &std::path::Path, sql: &str) -> String {
    let output = Command::new("sqlite3")
        .args(["-batch", "-bail", "-cmd", ".timeout 10000"])
        .arg(database)
        .arg(sql)
        .stdin(Stdio::null())
        .output()
        .expect("the sqlite3 command is installed");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Waits until a condition holds.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, holds: F) {
    assert!(within(PATIENCE, holds).await, "it never came to pass that {what}");
}

/// Waits until a condition holds, and says whether it did in time.
pub async fn within<F: AsyncFnMut() -> bool>(limit: Duration, mut holds: F) -> bool {
    let deadline = Instant::now() + limit;
    while !holds().await {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// A page's JSON.
pub fn page(id: &str, name: &str) -> serde_json::Value {
    serde_json::json!({ "id": id, "organization_id": "acme", "name": name })
}

/// A port that nothing listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
