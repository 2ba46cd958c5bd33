//! A directory that goes with its owner, however that ends. A shell holds the other end of a pipe: when the pipe
//! closes, by drop or by death, it waits for the server in the directory and removes everything. What that misses
//! (a machine that went down) is swept at the next start.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::process::Account;

const PREFIX: &str = "bourn-pg-";
/// The longest path of a directory in which PostgreSQL's socket still fits.
const LONGEST: usize = 80;

/// Waits until its input ends, then up to five seconds for a server that was told to stop, then kills it.
const JANITOR: &str = r#"
    cat >/dev/null
    for pidfile in "$1"/data/postmaster.pid; do
        turn=0
        while [ -e "$pidfile" ] && [ $turn -lt 50 ]; do
            [ $turn -gt 0 ] || kill -QUIT "$(head -n 1 "$pidfile")" 2>/dev/null
            sleep 0.1
            turn=$((turn + 1))
        done
        [ ! -e "$pidfile" ] || kill -KILL "$(head -n 1 "$pidfile")" 2>/dev/null
    done
    rm -rf "$1" "$1.lock"
"#;

pub(crate) struct Scratch {
    path: PathBuf,
    janitor: Child,
    /// Held for as long as the directory has an owner.
    _lock: File,
}

impl Scratch {
    /// A new directory that the servers' account owns, in the system's temporary directory unless another is given.
    pub(crate) fn new(account: &Account, base: Option<&Path>) -> Scratch {
        let mut base = base.map_or_else(std::env::temp_dir, Path::to_owned);
        if base.as_os_str().len() + PREFIX.len() + 16 > LONGEST {
            base = "/tmp".into();
        }
        sweep(&base);
        let path = base.join(format!("{PREFIX}{}", crate::token()));
        // The lock comes before the directory, so that nobody sees a directory without an owner.
        let lock = File::create(lock_of(&path)).expect("the temporary directory can be written");
        lock.try_lock().expect("nobody else knows the name");
        fs::create_dir(&path).unwrap();
        account.give(&path, 0o700);
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "sh"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C ends the tests; it must not end what clears up after them.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        Scratch { path, janitor, _lock: lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

fn lock_of(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Removes directories whose owners are no more.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || name.ends_with(".lock") {
            continue;
        }
        let lock = lock_of(&entry.path());
        let dead = File::open(&lock).map_or(true, |file| file.try_lock().is_ok());
        // Its janitor may be at it still; then there is nothing to do.
        if dead && !served(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
            let _ = fs::remove_file(lock);
        }
    }
}

/// Whether a server still runs in the directory: its janitor is about to stop it.
fn served(directory: &Path) -> bool {
    let Ok(text) = fs::read_to_string(directory.join("data/postmaster.pid")) else { return false };
    let pid = text.lines().next().unwrap_or_default();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(&*directory.to_string_lossy())
}
