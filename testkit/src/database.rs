//! Databases for one test each, and `psql`, the writer that knows nothing of Bourn.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::binaries::client;
use crate::cluster::Cluster;

/// Seconds that a `psql` may take.
const LIMIT: &str = "120";

/// A database that goes with this value.
pub struct Database {
    cluster: Cluster,
    name: String,
}

/// What `psql` said when it failed.
#[derive(Debug, Clone)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Database {
    pub(crate) fn new(cluster: &Cluster) -> Database {
        let name = format!("test_{}", crate::token());
        cluster.psql("postgres", &format!("CREATE DATABASE {name}"));
        Database { cluster: cluster.clone(), name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The superuser's URL; no password is asked for.
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// Another role's URL. Neither part may need escaping.
    pub fn url_as(&self, role: &str, password: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{}", self.cluster.port(), self.name)
    }

    /// Runs SQL through the `psql` command, each statement for itself, and gives what it printed: rows as lines,
    /// columns between `|`.
    pub fn psql(&self, sql: &str) -> String {
        self.cluster.psql(&self.name, sql)
    }

    /// The same, for SQL that may fail.
    pub fn try_psql(&self, sql: &str) -> Result<String, Refused> {
        self.cluster.try_psql(&self.name, sql)
    }

    /// The `psql` command itself, for what takes long or runs beside others.
    pub fn psql_command(&self) -> Command {
        self.cluster.psql_command(&self.name)
    }

    /// PostgreSQL's `pgbench`, told where this database is.
    pub fn pgbench_command(&self) -> Command {
        self.cluster.pgbench_command(&self.name)
    }
}

impl Drop for Database {
    /// Best effort: the server may be stopped, and its directory goes anyway.
    fn drop(&mut self) {
        let name = &self.name;
        // A slot keeps its database from being dropped, and a process that holds a slot keeps the slot.
        let _ = self.cluster.try_psql(
            "postgres",
            &format!(
                "UPDATE pg_database SET datallowconn = false WHERE datname = '{name}';
                 SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}';
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                     WHERE database = '{name}';
                 DROP DATABASE {name} WITH (FORCE);"
            ),
        );
    }
}

/// `psql` without a person's settings, stopping at the first error.
pub(crate) fn psql(url: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT]).arg(client("psql"));
    command.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1"]);
    command.arg(url).env("PGCONNECT_TIMEOUT", "10").env("PGOPTIONS", "-c client_min_messages=warning");
    command
}

/// Gives `psql` its SQL the way a script does, so that each statement is a transaction unless it says otherwise.
pub(crate) fn run(mut command: Command, sql: &str) -> Result<String, Refused> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the timeout command is there");
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // Beside the reading, so that neither pipe can fill up while the other is waited for.
        scope.spawn(move || {
            let _ = stdin.write_all(sql.as_bytes());
        });
        child.wait_with_output().unwrap()
    });
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(Refused(format!(
            "psql: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}
