//! A PostgreSQL server in a directory of its own: started, stopped, killed and started again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::signal::{Signal, kill};

use crate::binaries::{Binaries, client};
use crate::options::Options;
use crate::process::{self, Account};
use crate::psql::{self, Refused};
use crate::scratch::Scratch;
use crate::{PATIENCE, within};

/// Ports that may turn out to be taken between choosing and binding.
const ATTEMPTS: u32 = 5;
/// How much of the log is shown when something went wrong.
const TAIL: usize = 4000;

/// A running server; it stops when this and all of its databases are dropped. Clones are the same server.
#[derive(Clone)]
pub struct Cluster(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    // Dropped in this order: the server, then its directory.
    server: Mutex<Option<Child>>,
    scratch: Scratch,
    port: u16,
    ca: Option<PathBuf>,
}

impl Options {
    /// Starts a server with these.
    pub fn start(&self) -> Cluster {
        Cluster::with(self)
    }
}

impl Cluster {
    /// A server of one's own, for tests that stop it or look at all of it.
    pub fn start() -> Cluster {
        Cluster::with(&Options::default())
    }

    /// The one server that this process's tests share, started when it is first asked for.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Cluster::start)
    }

    /// Begins a server with other settings.
    pub fn options() -> Options {
        Options::default()
    }

    fn with(options: &Options) -> Cluster {
        let account = Account::get();
        let scratch = Scratch::new(account, options.base.as_deref());
        let data = data_of(scratch.path());
        let mut initdb = account.command(&Binaries::get().initdb, Signal::SIGKILL);
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        // It starts as what it is: nothing in it is worth a sync.
        initdb.args(["--no-sync", "--no-instructions", "--pgdata"]).arg(&data);
        let log = File::create(log_of(scratch.path())).unwrap();
        initdb.stdout(log.try_clone().unwrap()).stderr(log).current_dir(scratch.path());
        let mut child = process::spawn(initdb).unwrap_or_else(|error| panic!("initdb: {error}"));
        let status = child.wait().unwrap();
        assert!(status.success(), "initdb: {}", tail(scratch.path()));
        let ca = options.tls.then(|| crate::tls::make(account, scratch.path(), &data));
        account.write(&data.join("pg_hba.conf"), &options.pg_hba_conf());

        let usual = fs::read_to_string(data.join("postgresql.conf")).unwrap();
        let mut attempts = 1..=ATTEMPTS;
        let (server, port) = loop {
            let port = process::free_port();
            let settings = options.postgresql_conf(port, &scratch.path().display().to_string());
            account.write(&data.join("postgresql.conf"), &format!("{usual}\n{settings}"));
            match launch(scratch.path()) {
                Ok(server) => break (server, port),
                Err(reason) => {
                    assert!(
                        attempts.next().is_some() && reason.contains("Address already in use"),
                        "{reason}"
                    );
                }
            }
        };
        let cluster = Cluster(Arc::new(Inner { server: Mutex::new(Some(server)), scratch, port, ca }));
        for (role, password) in &options.scram {
            cluster.psql("postgres", &format!("CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}'"));
        }
        cluster
    }

    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// A database's URL for the superuser, who needs no password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port())
    }

    /// Runs SQL through the `psql` command, each statement for itself, and gives what it printed: rows as lines,
    /// columns between `|`.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).unwrap_or_else(|refused| panic!("{sql}: {refused}"))
    }

    /// The same, for SQL that may fail.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, Refused> {
        psql::run(self.psql_command(database), sql)
    }

    /// The `psql` command itself, for what takes long or runs beside others.
    pub fn psql_command(&self, database: &str) -> Command {
        psql::command(&self.url(database))
    }

    /// PostgreSQL's `pgbench`, told where the database is.
    pub fn pgbench_command(&self, database: &str) -> Command {
        let mut command = Command::new(client("pgbench"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-n", "-p"]).arg(self.port().to_string());
        command.arg(database);
        command
    }

    /// The major version of the server.
    pub fn major(&self) -> u32 {
        Binaries::get().major
    }

    /// Who signed the server's certificate, as a file; only with `Options::tls`.
    pub fn ca(&self) -> &Path {
        self.0.ca.as_deref().expect("the cluster was started with TLS")
    }

    /// Where the socket and the data directory (`data`) are.
    pub fn directory(&self) -> &Path {
        self.0.scratch.path()
    }

    /// Everything the server has written into its log.
    pub fn log(&self) -> String {
        read_log(self.directory())
    }

    /// The number of the server's first process.
    pub fn pid(&self) -> u32 {
        self.0.server().as_ref().expect("the server runs").id()
    }

    /// Stops as if the power went: no checkpoint, connections cut, recovery at the next start.
    pub fn stop_immediate(&self) {
        self.0.stop(Signal::SIGQUIT);
    }

    /// Stops gracefully without waiting for clients.
    pub fn stop_fast(&self) {
        self.0.stop(Signal::SIGINT);
    }

    /// Kills all of the server's processes at once.
    pub fn kill9(&self) {
        let mut server = self.0.server();
        let mut child = server.take().expect("the server runs");
        let first = process::pid(child.id());
        let children = children(child.id());
        kill(first, Signal::SIGKILL).unwrap();
        for &pid in &children {
            let _ = kill(process::pid(pid), Signal::SIGKILL);
        }
        assert!(process::ended(&mut child), "the server outlives kill -9");
        let gone = || children.iter().all(|&pid| !runs(pid));
        assert!(within(PATIENCE, gone), "a server process outlives kill -9");
    }

    /// Starts the stopped server, on the same port, and waits until it can be worked with.
    pub fn start_again(&self) {
        let mut server = self.0.server();
        assert!(server.is_none(), "the server runs");
        *server = Some(launch(self.directory()).unwrap_or_else(|reason| panic!("{reason}")));
    }

    /// Stops gracefully and starts again.
    pub fn restart(&self) {
        self.stop_fast();
        self.start_again();
    }
}

impl Inner {
    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, signal: Signal) {
        let mut child = self.server().take().expect("the server runs");
        process::signal(&child, signal);
        if !process::ended(&mut child) {
            let _ = child.kill();
            panic!("the server does not stop: {}", tail(self.scratch.path()));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(mut child) = self.server().take() {
            process::signal(&child, Signal::SIGQUIT);
            process::ended(&mut child);
        }
    }
}

pub(crate) fn data_of(scratch: &Path) -> PathBuf {
    scratch.join("data")
}

fn log_of(scratch: &Path) -> PathBuf {
    scratch.join("log")
}

fn read_log(scratch: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log_of(scratch)).unwrap_or_default()).into_owned()
}

/// The end of the log.
fn tail(scratch: &Path) -> String {
    let log = read_log(scratch);
    let from = log.ceil_char_boundary(log.len().saturating_sub(TAIL));
    log.get(from..).unwrap_or_default().to_owned()
}

/// Starts the server in this directory and waits until it takes connections; says in its own words why not.
pub(crate) fn launch(scratch: &Path) -> Result<Child, String> {
    launch_in(scratch, &data_of(scratch), &[])
}

/// The same for a data directory beside it, with further arguments.
pub(crate) fn launch_in(scratch: &Path, data: &Path, arguments: &[String]) -> Result<Child, String> {
    let log = File::options().append(true).open(log_of(scratch)).unwrap();
    let mut command = Account::get().command(&Binaries::get().postgres, Signal::SIGQUIT);
    command
        .arg("-D")
        .arg(data)
        .args(arguments)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .current_dir(scratch);
    let mut child = process::spawn(command).map_err(|error| error.to_string())?;
    // The eighth line says how far the server has come; the first whether it is about this server.
    let ready = |child: &Child| {
        let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        lines.next() == Some(&child.id().to_string())
            && lines.nth(6).is_some_and(|state| matches!(state.trim(), "ready" | "standby"))
    };
    let mut died = false;
    let started = within(PATIENCE, || {
        died = child.try_wait().is_ok_and(|status| status.is_some());
        died || ready(&child)
    });
    if started && !died {
        return Ok(child);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("PostgreSQL does not start: {}", tail(scratch)))
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process is there and has not ended: one that nobody has waited for yet is as good as gone.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
