//! `psql`, the writer that knows nothing of Bourn.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::binaries::client;

/// Seconds that a `psql` may take.
const LIMIT: &str = "120";

/// What `psql` said when it failed.
#[derive(Debug, Clone)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// `psql` without a person's settings, stopping at the first error.
pub(crate) fn command(url: &str) -> Command {
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
