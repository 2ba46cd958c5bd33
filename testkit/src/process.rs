//! Under which account servers run, and how they are started so that they end with this process.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::{fs, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, geteuid};

use crate::within;

/// Servers that refuse to run as root need another account.
#[derive(Debug)]
pub(crate) enum Account {
    /// An ordinary user's: the servers run as the tests do.
    Same,
    /// Root's: the servers run as this user.
    Other(Uid, Gid),
    /// Root's in a user namespace in which there is nobody else: the servers get a namespace within, where the
    /// same account has an ordinary number.
    Namespace,
}

impl Account {
    pub(crate) fn get() -> &'static Account {
        static ACCOUNT: OnceLock<Account> = OnceLock::new();
        ACCOUNT.get_or_init(|| {
            if !geteuid().is_root() {
                return Account::Same;
            }
            let found = ["postgres", "nobody"].into_iter().find_map(|name| {
                let user = User::from_name(name).ok().flatten()?;
                let other = Account::Other(user.uid, user.gid);
                let works = other.command(Path::new("true"), Signal::SIGKILL).status();
                works.is_ok_and(|status| status.success()).then_some(other)
            });
            found.unwrap_or(Account::Namespace)
        })
    }

    /// A program that runs under this account and gets the signal when this process dies. `setpriv` asks for the
    /// signal after it has changed the user, which would take the wish back.
    pub(crate) fn command(&self, program: &Path, at_death: Signal) -> Command {
        let signal = at_death.as_str().trim_start_matches("SIG");
        let mut command = match self {
            Account::Namespace => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-user=1000", "--map-group=1000", "setpriv"]);
                command
            }
            _ => Command::new("setpriv"),
        };
        if let Account::Other(user, group) = self {
            command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
        }
        command.arg(format!("--pdeathsig={signal}")).arg("--").arg(program);
        // A Ctrl-C is for the tests; their end reaches the servers anyway.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command
    }

    /// Makes a file or directory the account's.
    pub(crate) fn give(&self, path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        if let Account::Other(user, group) = self {
            chown(path, Some(user.as_raw()), Some(group.as_raw())).unwrap();
        }
    }

    /// Writes a file that the account owns and nobody else reads.
    pub(crate) fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        self.give(path, 0o600);
    }
}

/// A command to be started, and where the outcome goes.
type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process: the signal at the parent's death is sent
/// when the *thread* ends that started the child, and a test's thread ends with the test.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static NURSERY: OnceLock<SyncSender<Order>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (sender, orders) = sync_channel::<Order>(16);
        std::thread::Builder::new()
            .name("nursery".into())
            .spawn(move || {
                for (mut command, outcome) in orders {
                    let _ = outcome.send(command.spawn());
                }
            })
            .unwrap();
        sender
    });
    let (outcome, spawned) = sync_channel(1);
    nursery.send((command, outcome)).expect("the nursery lives as long as the process");
    spawned.recv().expect("the nursery answers every order")
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    // One that has ended is not there to be told.
    let _ = kill(pid(child.id()), signal);
}

pub(crate) fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed())
}

/// Waits for a process that was told to end.
pub(crate) fn ended(child: &mut Child) -> bool {
    within(crate::PATIENCE, || child.try_wait().is_ok_and(|status| status.is_some()))
}

/// A port that is free now. It lies below those that outgoing connections take, so that it is also free when a
/// stopped server comes back.
pub(crate) fn free_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    let state = RandomState::new();
    (0_u16..500)
        .map(|attempt| 20_000 + u16::try_from(state.hash_one(attempt) % 12_000).unwrap())
        .find(|&port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a port is free")
}
