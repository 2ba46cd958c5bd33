//! The processes that are measured: started on a free loopback port, asked for their CPU time and memory, and
//! ended with the measurement.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::measure;
use crate::wire::{self, Connection, SMALL};

/// How long a server may take until it says where it listens.
const START: Duration = Duration::from_secs(20);
/// How often a server is asked whether it is ready.
const READY: Duration = Duration::from_millis(10);

/// Where the programs are and where databases may be made.
pub(crate) struct Bench {
    bourn: PathBuf,
    dir: PathBuf,
}

impl Bench {
    pub(crate) fn new(bourn: Option<PathBuf>, dir: Option<PathBuf>) -> Bench {
        let beside = || {
            let program = std::env::current_exe().ok()?.with_file_name("bourn");
            program.is_file().then_some(program)
        };
        let bourn = bourn.or_else(beside).unwrap_or_else(|| "target/release/bourn".into());
        Bench { bourn, dir: dir.unwrap_or_else(std::env::temp_dir) }
    }

    /// A directory of its own for one measurement; it goes when it is dropped.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("bourn-bench-")
            .tempdir_in(&self.dir)
            .with_context(|| format!("cannot make a directory in {}", self.dir.display()))
    }

    /// Bourn on a database in this directory. What the environment sets applies, so that settings can be tried;
    /// `settings` come on top.
    pub(crate) async fn bourn(&self, scratch: &Path, settings: &[(&str, &str)]) -> Result<Server> {
        let mut command = Command::new(&self.bourn);
        let database = format!("sqlite:{}", database(scratch).display());
        command.args(["serve", "--listen", "127.0.0.1:0", "--database", &database]);
        command.env("BOURN_LOG", "warn").envs(settings.iter().copied());
        let server = Server::start(command)
            .await
            .with_context(|| format!("cannot start {}; name it with --bourn", self.bourn.display()))?;
        server.ready(START).await?;
        Ok(server)
    }

    /// Bourn on a PostgreSQL database, as soon as it listens: it may have much to do before it is ready.
    pub(crate) async fn bourn_on(&self, url: &str, config: &Path) -> Result<Server> {
        let mut command = self.bourn_command("serve", url, config);
        command.args(["--listen", "127.0.0.1:0"]).env("BOURN_SSE_LIFETIME", "600s");
        Server::start(command)
            .await
            .with_context(|| format!("cannot start {}; name it with --bourn", self.bourn.display()))
    }

    /// Has Bourn set up what it needs in a PostgreSQL database.
    pub(crate) async fn prepare(&self, url: &str, config: &Path) -> Result<()> {
        let mut command = self.bourn_command("prepare", url, config);
        let output = tokio::time::timeout(START, command.arg("--apply").kill_on_drop(true).output())
            .await
            .context("bourn prepare does not end")?
            .with_context(|| format!("cannot start {}; name it with --bourn", self.bourn.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "bourn prepare: {}", said.trim_end());
        Ok(())
    }

    fn bourn_command(&self, what: &str, url: &str, config: &Path) -> Command {
        let mut command = Command::new(&self.bourn);
        command.arg(what).arg("--config").arg(config).env("BOURN_DATABASE", url).env("BOURN_LOG", "warn");
        command
    }

    /// Where databases may be made.
    pub(crate) fn directory(&self) -> &Path {
        &self.dir
    }

    /// Another server, by the shell command that starts it.
    pub(crate) async fn foreign(&self, command: &str, scratch: &Path) -> Result<Server> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let command = command
            .replace("{port}", &address.port().to_string())
            .replace("{dir}", &scratch.display().to_string());
        let mut shell = Command::new("sh");
        // The shell becomes the server, so that its CPU time is the server's.
        shell.args(["-c", &format!("exec {command}")]);
        let mut child = shell
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("the child has no standard output")?);
        let pid = child.id().context("the child has ended")?;
        let listens = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(READY).await;
            }
        };
        tokio::time::timeout(START, listens).await.with_context(|| format!("`{command}` does not listen"))?;
        Ok(Server { address, pid, child, _stdout: stdout })
    }

    /// This program again, as a baseline.
    pub(crate) async fn baseline(&self, arguments: &[&str]) -> Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        Server::start(command).await.context("cannot start the baseline")
    }
}

/// The database file in a measurement's directory.
pub(crate) fn database(scratch: &Path) -> PathBuf {
    scratch.join("bourn.db")
}

/// A server that runs for as long as this lives.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pid: u32,
    child: Child,
    /// Kept open: a server that writes another line must not meet a closed pipe.
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    async fn start(mut command: Command) -> Result<Server> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("the child has no standard output")?);
        let mut first = String::new();
        tokio::time::timeout(START, stdout.read_line(&mut first)).await.context("it does not start")??;
        let Some((_, address)) = first.trim_end().rsplit_once("http://") else {
            bail!("it said {first:?} where its address was expected");
        };
        let pid = child.id().context("the child has ended")?;
        Ok(Server { address: address.parse()?, pid, child, _stdout: stdout })
    }

    /// Waits until Bourn says that it can do all of its work.
    pub(crate) async fn ready(&self, limit: Duration) -> Result<()> {
        let ready = async {
            let mut connection = Connection::open(self.address, SMALL).await?;
            let request = wire::get(self.address, "/ready", None);
            while connection.exchange(&request).await?.status != 200 {
                tokio::time::sleep(READY).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(limit, ready).await.context("Bourn does not get ready")?
    }

    /// The number of the log's last change; nothing if Bourn does not say.
    pub(crate) async fn head(&self) -> Result<Option<u64>> {
        let mut connection = Connection::open(self.address, SMALL).await?;
        let answer = connection.exchange(&wire::get(self.address, "/ready", None)).await?;
        let head = connection.small_body(&answer).and_then(|body| body.split_once("\"head\":\""));
        let offset = head.and_then(|(_, rest)| rest.split_once('"')).map(|(offset, _)| offset);
        Ok(offset.and_then(|offset| offset.rsplit_once('_')).and_then(|(_, seq)| seq.parse().ok()))
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        measure::cpu_seconds(self.pid).context("the server has died")
    }

    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        measure::resident_bytes(self.pid).context("the server has died")
    }

    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        measure::peak_bytes(self.pid).context("the server has died")
    }

    /// Ends it and waits for that, so that the next may open the same database.
    pub(crate) async fn end(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
