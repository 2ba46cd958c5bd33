//! A server process of the test's own, on a port and in a directory of its own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use super::{Client, PATIENCE};

pub struct Bourn {
    child: Option<Child>,
    address: String,
    directory: TempDir,
    /// The database's URL.
    database: String,
    settings: Vec<(String, String)>,
    /// Where the present process's part of the log begins.
    log_from: usize,
    /// The variable that makes the server fail at some place.
    failpoints: Option<(&'static str, String)>,
    /// The log goes to a reader of the test's own, and not into a file.
    log_is_piped: bool,
}

/// The URL of a SQLite file.
pub fn sqlite_url(file: &Path) -> String {
    format!("sqlite:{}", file.display())
}

impl Bourn {
    /// Starts a server on a new SQLite file with these settings (`long_poll_timeout`, `2s`).
    pub async fn start(settings: &[(&str, &str)]) -> Bourn {
        let directory = tempfile::tempdir().unwrap();
        let database = sqlite_url(&directory.path().join("bourn.db"));
        Self::start_in(directory, database, settings).await
    }

    /// Starts a server with a configuration file, on a SQLite file that `prepare` may fill first.
    pub async fn start_with(config: &str, settings: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Bourn {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("bourn.db");
        prepare(&database);
        let file = directory.path().join("bourn.toml");
        std::fs::write(&file, config).unwrap();
        let mut settings = settings.to_vec();
        let file = file.to_str().unwrap().to_owned();
        settings.push(("config", &file));
        Self::start_in(directory, sqlite_url(&database), &settings).await
    }

    /// Starts a server on the database that this URL names.
    pub async fn start_on(database: &str, settings: &[(&str, &str)]) -> Bourn {
        Self::start_in(tempfile::tempdir().unwrap(), database.to_owned(), settings).await
    }

    /// The same, for a server that cannot be ready yet: it listens, and says at `/ready` what it lacks.
    pub async fn begin_on(database: &str, settings: &[(&str, &str)]) -> Bourn {
        let mut bourn = Self::new(tempfile::tempdir().unwrap(), database.to_owned(), settings);
        bourn.listen().await;
        bourn
    }

    /// Starts a server whose log lines the test reads.
    pub async fn start_with_piped_log(database: &str, settings: &[(&str, &str)]) -> (Bourn, ChildStderr) {
        let mut bourn = Self::new(tempfile::tempdir().unwrap(), database.to_owned(), settings);
        bourn.log_is_piped = true;
        bourn.listen().await;
        let lines = bourn.child.as_mut().and_then(|child| child.stderr.take()).unwrap();
        bourn.ready().await;
        (bourn, lines)
    }

    /// Starts a server that is to fail: `failpoints` are places and actions, as `tail=panic`.
    pub async fn start_failing(database: &str, settings: &[(&str, &str)], failpoints: &str) -> Bourn {
        let mut bourn = Self::new(tempfile::tempdir().unwrap(), database.to_owned(), settings);
        bourn.failpoints = Some(("FAILPOINTS", failpoints.to_owned()));
        bourn.listen().await;
        bourn
    }

    /// The same, for a server that may fail to start at the moment; gives what it said then.
    pub async fn try_begin_on(database: &str, settings: &[(&str, &str)]) -> Result<Bourn, String> {
        let mut bourn = Self::new(tempfile::tempdir().unwrap(), database.to_owned(), settings);
        bourn.try_listen().await.map(|()| bourn)
    }

    async fn start_in(directory: TempDir, database: String, settings: &[(&str, &str)]) -> Bourn {
        let mut bourn = Self::new(directory, database, settings);
        bourn.restart().await;
        bourn
    }

    fn new(directory: TempDir, database: String, settings: &[(&str, &str)]) -> Bourn {
        let settings = settings
            .iter()
            .map(|(name, value)| (format!("BOURN_{}", name.to_uppercase()), (*value).to_owned()));
        Bourn {
            child: None,
            address: "127.0.0.1:0".into(),
            directory,
            database,
            settings: settings.collect(),
            log_from: 0,
            failpoints: None,
            log_is_piped: false,
        }
    }

    fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bourn"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).kill_on_drop(true);
        command
    }

    /// Runs the command to its end, which must come in time.
    pub async fn output(arguments: &[&str], variables: &[(&str, &str)]) -> std::process::Output {
        let output = Self::command().args(arguments).envs(variables.iter().copied()).output();
        tokio::time::timeout(PATIENCE, output).await.expect("the command ends in time").unwrap()
    }

    /// Starts the process and waits until it listens.
    async fn listen(&mut self) {
        if let Err(reason) = self.try_listen().await {
            panic!("{reason}");
        }
    }

    /// The same, for a server that may end at once; what it said then.
    async fn try_listen(&mut self) -> Result<(), String> {
        self.log_from = self.log().len();
        let mut command = Self::command();
        command.arg("serve").arg("--listen").arg(&self.address);
        command.arg("--database").arg(&self.database);
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.envs(self.failpoints.clone());
        let log = if self.log_is_piped { Stdio::piped() } else { log_file(self.directory.path()) };
        command.stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .expect("the server starts in time")
            .unwrap();
        let Some(first) = first else {
            let _ = child.wait().await;
            return Err(format!("the server did not start: {}", self.recent_log()));
        };
        self.address = first.split_once("http://").expect("the first line tells the address").1.to_owned();
        // The pipe stays open, so that nothing the server prints can fail.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the server can do its work, and the log has every table as it is.
    pub async fn ready(&self) {
        let client = self.client();
        let mut last = String::new();
        let ready = super::within(super::PATIENCE, async || {
            let answer = client.get("/ready").await;
            last = answer.text().to_owned();
            answer.is_settled()
        });
        let ready = ready.await;
        let log = self.log();
        let tail = log.ceil_char_boundary(log.len().saturating_sub(4_000));
        assert!(ready, "the server never was ready: {last}\n{}", &log[tail..]);
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The database's URL.
    pub fn url(&self) -> &str {
        &self.database
    }

    /// The SQLite file.
    pub fn database(&self) -> &Path {
        Path::new(self.database.strip_prefix("sqlite:").expect("the database is a SQLite file"))
    }

    pub fn client(&self) -> Client {
        Client::new(&self.address)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("bourn.log")).unwrap_or_default()
    }

    /// What it has logged since it was started last.
    pub fn recent_log(&self) -> String {
        self.log().split_off(self.log_from)
    }

    /// Runs SQL on the SQLite file in another process.
    pub fn sql(&self, sql: &str) -> String {
        super::sqlite3(self.database(), sql)
    }

    /// The process's number.
    pub fn process(&self) -> u32 {
        self.pid().as_raw().cast_unsigned()
    }

    fn pid(&self) -> Pid {
        let id = self.child.as_ref().and_then(Child::id).expect("the server runs");
        Pid::from_raw(i32::try_from(id).unwrap())
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory there ever was, in bytes.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, which: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time that the server has used, user and system together.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.child.take().unwrap().wait().await.unwrap();
    }

    /// SIGSTOP: it is there, and does nothing.
    pub fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
    }

    /// SIGCONT: it goes on as if no time had passed.
    pub fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// SIGTERM; the server may take its time.
    pub fn terminate(&self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
    }

    /// Waits for the end of a server that was told to stop; gives its success and how long it took.
    pub async fn ended(&mut self) -> (bool, Duration) {
        let started = std::time::Instant::now();
        let status = tokio::time::timeout(PATIENCE, self.child.take().unwrap().wait())
            .await
            .expect("it stops in time");
        (status.unwrap().success(), started.elapsed())
    }

    /// Starts again after [`Bourn::kill`] or [`Bourn::ended`], on the same address and database.
    pub async fn restart(&mut self) {
        self.begin_again().await;
        self.ready().await;
    }

    /// The same, for a server that may fail to start at the moment.
    pub async fn try_begin_again(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "it still runs");
        self.try_listen().await
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// The same, for a server that cannot be ready yet.
    pub async fn begin_again(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        self.listen().await;
    }
}

fn log_file(directory: &Path) -> Stdio {
    std::fs::OpenOptions::new().create(true).append(true).open(directory.join("bourn.log")).unwrap().into()
}
