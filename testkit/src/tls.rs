//! A certificate authority of one's own, and a server certificate that it signed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Account;

/// Makes `ca.crt`, `server.crt` and `server.key` in the data directory; says where a client finds the first. That
/// lies beside the data, which PostgreSQL keeps to itself.
pub(crate) fn make(account: &Account, scratch: &Path, data: &Path) -> PathBuf {
    let ca = scratch.join("ca.crt");
    let ca_key = scratch.join("ca.key");
    let certificate = data.join("server.crt");
    let key = data.join("server.key");
    let fresh = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        &fresh,
        &["-days", "30", "-subj", "/CN=Bourn's test authority", "-addext", "keyUsage=critical,keyCertSign"],
        &[("-keyout", &ca_key), ("-out", &ca)],
    );
    openssl(
        &fresh,
        &[
            "-days",
            "30",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ],
        &[("-CA", &ca), ("-CAkey", &ca_key), ("-keyout", &key), ("-out", &certificate)],
    );
    for path in [&certificate, &key] {
        account.give(path, 0o600);
    }
    ca
}

fn openssl(begin: &[&str], arguments: &[&str], files: &[(&str, &Path)]) {
    let mut command = Command::new("openssl");
    command.args(begin).args(arguments);
    for (name, path) in files {
        command.arg(name).arg(path);
    }
    let output = command.output().expect("the openssl command is installed");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}
