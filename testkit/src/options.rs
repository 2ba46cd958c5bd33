//! What a cluster is started with.

use std::path::{Path, PathBuf};

/// Settings of a cluster that is not the usual one.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub(crate) base: Option<PathBuf>,
    pub(crate) durable: bool,
    pub(crate) tls: bool,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) hba: Vec<String>,
    pub(crate) scram: Vec<(String, String)>,
}

impl Options {
    /// Syncs what it commits, as a real server does: for crashes of the machine's kind, and for measurements.
    pub fn durable(mut self) -> Options {
        self.durable = true;
        self
    }

    /// Makes the cluster's directory in this one instead of the system's temporary directory. Everybody must be
    /// allowed to look into it, for the server may run as another user.
    pub fn within(mut self, base: &Path) -> Options {
        self.base = Some(base.to_owned());
        self
    }

    /// A line of `postgresql.conf`; it wins over the usual ones.
    pub fn setting(mut self, name: &str, value: &str) -> Options {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A line of `pg_hba.conf`, before those that let everybody in.
    pub fn hba(mut self, line: &str) -> Options {
        self.hba.push(line.to_owned());
        self
    }

    /// Offers TLS with a certificate for 127.0.0.1 and localhost; `Cluster::ca` is who signed it.
    pub fn tls(mut self) -> Options {
        self.tls = true;
        self
    }

    /// Makes a role that has to give this password (letters and digits), by SCRAM. It may log in and no more.
    pub fn scram(mut self, role: &str, password: &str) -> Options {
        self.scram.push((role.to_owned(), password.to_owned()));
        self.hba(&format!("host all {role} 127.0.0.1/32 scram-sha-256"))
    }

    pub(crate) fn postgresql_conf(&self, port: u16, directory: &str) -> String {
        let mut lines = vec![
            format!("port = {port}"),
            "listen_addresses = '127.0.0.1'".into(),
            format!("unix_socket_directories = '{directory}'"),
            "wal_level = logical".into(),
            "max_wal_senders = 60".into(),
            "max_replication_slots = 60".into(),
            "max_connections = 300".into(),
            "shared_buffers = '64MB'".into(),
            // Its segments lie in the data directory and go with it; those in /dev/shm outlive a kill -9.
            "dynamic_shared_memory_type = mmap".into(),
            "log_line_prefix = '%m [%p] %d '".into(),
            "log_replication_commands = on".into(),
            "lc_messages = 'C'".into(),
        ];
        if !self.durable {
            // What was written outlives every crash of PostgreSQL, for the system's cache has it; only a crash of
            // the machine would lose it, and no test does that. Syncing is most of a small commit's time.
            lines.push("fsync = off".into());
        }
        if self.tls {
            lines.push("ssl = on".into());
            lines.push("ssl_cert_file = 'server.crt'".into());
            lines.push("ssl_key_file = 'server.key'".into());
        }
        for (name, value) in &self.settings {
            lines.push(format!("{name} = '{}'", value.replace('\'', "''")));
        }
        lines.join("\n") + "\n"
    }

    pub(crate) fn pg_hba_conf(&self) -> String {
        let mut lines = self.hba.clone();
        lines.push("local all all trust".into());
        lines.push("host all all 127.0.0.1/32 trust".into());
        lines.push("local replication all trust".into());
        lines.push("host replication all 127.0.0.1/32 trust".into());
        lines.join("\n") + "\n"
    }
}
