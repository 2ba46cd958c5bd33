//! What sets a cluster back in time: copies of its files that are put back, and standbys that take its place.

use std::path::PathBuf;
use std::process::Child;

use nix::sys::signal::Signal;

use crate::binaries::Binaries;
use crate::cluster::{Cluster, data_of, launch_in};
use crate::process::{self, Account};

/// A copy of a cluster's data directory.
#[derive(Debug)]
pub struct Copy(PathBuf);

/// A standby of a cluster, in the cluster's own directory.
#[derive(Debug)]
pub struct Standby {
    data: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Standby {
    /// Where one of its databases is, for reading.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Stops it: what the cluster commits from now on does not reach it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.server.take() {
            process::signal(&child, Signal::SIGINT);
            process::ended(&mut child);
        }
    }
}

impl Cluster {
    fn beside(&self, name: &str) -> PathBuf {
        self.directory().join(format!("{name}-{}", crate::token()))
    }

    /// Whether the server's own `pg_basebackup` is there: another major's refuses it.
    pub fn has_base_backups(&self) -> bool {
        Binaries::get().postgres.with_file_name("pg_basebackup").is_file()
    }

    fn run(&self, program: &str, arguments: &[String]) {
        let beside = Binaries::get().postgres.with_file_name(program);
        let program = if beside.is_file() { beside } else { crate::binaries::in_path(program) };
        let mut command = Account::get().command(&program, Signal::SIGKILL);
        command.args(arguments).current_dir(self.directory());
        let mut child = process::spawn(command).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{} {arguments:?}: {status}; {}", program.display(), self.log());
    }

    /// Takes a base backup of the running cluster.
    pub fn base_backup(&self) -> Copy {
        let to = self.beside("backup");
        let connection = format!("host=127.0.0.1 user=postgres port={}", self.port());
        let arguments = ["-d", &connection, "-X", "stream", "-c", "fast", "--no-sync", "-D"];
        let arguments: Vec<String> =
            arguments.iter().map(ToString::to_string).chain([to.display().to_string()]).collect();
        self.run("pg_basebackup", &arguments);
        Copy(to)
    }

    /// Copies the files of the stopped cluster.
    pub fn copy_files(&self) -> Copy {
        let to = self.beside("copy");
        let from = data_of(self.directory());
        self.run("cp", &["-a".into(), from.display().to_string(), to.display().to_string()]);
        Copy(to)
    }

    /// Puts a copy in the place of the stopped cluster's files.
    pub fn put_back(&self, copy: &Copy) {
        let data = data_of(self.directory());
        std::fs::rename(&data, self.beside("former")).unwrap();
        self.run("cp", &["-a".into(), copy.0.display().to_string(), data.display().to_string()]);
    }

    /// Starts a standby that follows the cluster, with a slot of its own called `standby`.
    pub fn standby(&self) -> Standby {
        let data = self.beside("standby");
        let connection = format!(
            "host=127.0.0.1 user=postgres dbname=postgres port={} application_name=standby",
            self.port()
        );
        let arguments =
            ["-d", &connection, "-X", "stream", "-c", "fast", "--no-sync", "-R", "-C", "-S", "standby", "-D"];
        let arguments: Vec<String> =
            arguments.iter().map(ToString::to_string).chain([data.display().to_string()]).collect();
        self.run("pg_basebackup", &arguments);
        let port = process::free_port();
        let mut arguments = vec!["-p".to_owned(), port.to_string()];
        if self.major() >= 17 {
            for setting in ["sync_replication_slots=on", "hot_standby_feedback=on"] {
                arguments.extend(["-c".to_owned(), setting.to_owned()]);
            }
        }
        let server = launch_in(self.directory(), &data, &arguments).unwrap();
        Standby { data, port, server: Some(server) }
    }

    /// Has a standby take the place of the stopped cluster, under its address, and promotes it.
    pub fn fail_over(&self, mut standby: Standby) {
        standby.stop();
        let data = data_of(self.directory());
        std::fs::rename(&data, self.beside("former")).unwrap();
        std::fs::rename(&standby.data, &data).unwrap();
        self.start_again();
        self.psql("postgres", "SELECT pg_promote()");
    }
}
