//! Databases for one test each.

use std::process::Command;

use crate::cluster::Cluster;
use crate::psql::Refused;

/// A database that goes with this value.
pub struct Database {
    cluster: Cluster,
    name: String,
}

impl Cluster {
    /// A database for one test.
    pub fn database(&self) -> Database {
        Database::new(self)
    }
}

impl Database {
    fn new(cluster: &Cluster) -> Database {
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
