//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names a directory with `initdb` and `postgres`.
const VARIABLE: &str = "BOURN_TEST_POSTGRES_BIN";
/// Where Debian has them, by major version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Programs that Debian keeps outside an ordinary user's path.
const SYSTEM: &str = "/usr/sbin";

#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) initdb: PathBuf,
    pub(crate) postgres: PathBuf,
    pub(crate) major: u32,
}

impl Binaries {
    /// What the variable names, else Debian's newest, else what the path has.
    pub(crate) fn get() -> &'static Binaries {
        static BINARIES: OnceLock<Binaries> = OnceLock::new();
        BINARIES.get_or_init(|| {
            let directory = match std::env::var_os(VARIABLE) {
                Some(directory) => Some(PathBuf::from(directory)),
                None => debian(),
            };
            let (initdb, postgres) = match directory {
                Some(directory) => (directory.join("initdb"), directory.join("postgres")),
                None => (in_path("initdb"), in_path("postgres")),
            };
            let major = major(&postgres);
            Binaries { initdb, postgres, major }
        })
    }
}

fn debian() -> Option<PathBuf> {
    let versions = std::fs::read_dir(DEBIAN).ok()?.flatten();
    let numbered = versions.filter_map(|entry| {
        let major: u32 = entry.file_name().to_str()?.parse().ok()?;
        let directory = entry.path().join("bin");
        directory.join("postgres").is_file().then_some((major, directory))
    });
    numbered.max().map(|(_, directory)| directory)
}

/// A client's program, which speaks to any version. In the path Debian has a wrapper in Perl that takes a hundred
/// milliseconds, so its own are preferred.
pub(crate) fn client(program: &str) -> PathBuf {
    let own = debian().map(|directory| directory.join(program));
    own.filter(|own| own.is_file()).unwrap_or_else(|| in_path(program))
}

/// A program's path; where it is nowhere, its name, so that the error names what is missing.
pub(crate) fn in_path(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from(SYSTEM)])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| program.into())
}

/// The number in `postgres (PostgreSQL) 15.18 (…)`.
fn major(postgres: &Path) -> u32 {
    let output = Command::new(postgres).arg("--version").output();
    let output = output.unwrap_or_else(|error| {
        panic!("{} cannot be run ({error}); install postgresql or set {VARIABLE}", postgres.display())
    });
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{} says {text:?}", postgres.display()))
}
