//! Debian's `pgbouncer` before a cluster, in transaction mode: a connection belongs to nobody for longer than a
//! transaction.

use std::fs::File;
use std::net::TcpStream;
use std::process::Child;

use nix::sys::signal::Signal;

use crate::binaries::in_path;
use crate::cluster::Cluster;
use crate::process::{self, Account};
use crate::scratch::Scratch;
use crate::{PATIENCE, within};

/// A running pooler; it stops when this is dropped.
pub struct PgBouncer {
    server: Child,
    scratch: Scratch,
    port: u16,
}

impl PgBouncer {
    pub fn start(cluster: &Cluster) -> PgBouncer {
        let account = Account::get();
        let scratch = Scratch::new(account, None);
        let (path, port) = (scratch.path(), process::free_port());
        let directory = path.display();
        account.write(
            &path.join("pgbouncer.ini"),
            &format!(
                "[databases]\n\
                 * = host=127.0.0.1 port={} user=postgres\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\n\
                 listen_port = {port}\n\
                 unix_socket_dir = {directory}\n\
                 auth_type = any\n\
                 admin_users = postgres\n\
                 pool_mode = transaction\n\
                 default_pool_size = 20\n\
                 max_client_conn = 500\n",
                cluster.port()
            ),
        );
        let log = File::create(path.join("log")).unwrap();
        let mut command = account.command(&in_path("pgbouncer"), Signal::SIGTERM);
        command.arg(path.join("pgbouncer.ini")).stdout(log.try_clone().unwrap()).stderr(log);
        let server = process::spawn(command).expect("pgbouncer can be started");
        let mut pooler = PgBouncer { server, scratch, port };
        let mut died = false;
        let answers = within(PATIENCE, || {
            died = pooler.server.try_wait().is_ok_and(|status| status.is_some());
            died || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(answers && !died, "pgbouncer does not start (is it installed?): {}", pooler.log());
        pooler
    }

    /// A database of the cluster, through the pooler. `pgbouncer` is its own, for `SHOW` and the like.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.scratch.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        process::signal(&self.server, Signal::SIGTERM);
        process::ended(&mut self.server);
    }
}
