//! A session of the database's that holds a lock for as long as a test likes.

use std::io::Write;
use std::process::{Child, Stdio};

use crate::site::Site;
use crate::support::eventually;

/// A `psql` session that has begun something and goes on holding it.
pub struct Holder(Child);

impl Holder {
    /// Runs this in a transaction that stays open, and waits until it is done.
    pub async fn new(site: &Site, sql: &str) -> Holder {
        let mut command = site.database.psql_command();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mark = format!("hold_{}", site.database.name());
        let text = format!("SET application_name = '{mark}'; BEGIN; {sql};\n");
        child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        let holds = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{mark}' AND state = 'idle in transaction' AND query NOT LIKE 'BEGIN%'"
        );
        eventually("the session holds its lock", async || site.sql(&holds) == "1").await;
        Holder(child)
    }

    /// Commits.
    pub fn commit(mut self) {
        self.0.stdin.take().unwrap().write_all(b"COMMIT;\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}
