//! The clusters themselves: what they promise to the tests that use them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bourn_testkit::{Cluster, PgBouncer};

#[test]
fn postgres_databases_are_apart_and_go() {
    let cluster = Cluster::shared();
    let (one, two) = (cluster.database(), cluster.database());
    one.psql("CREATE TABLE t (id int PRIMARY KEY, name text); INSERT INTO t VALUES (1, 'ä'), (2, NULL);");
    assert_eq!(one.psql("SELECT * FROM t ORDER BY id"), "1|ä\n2|");
    assert!(two.try_psql("SELECT * FROM t").unwrap_err().0.contains("does not exist"));
    let name = one.name().to_owned();
    one.psql("SELECT pg_create_logical_replication_slot('kept_by_the_test', 'pgoutput')");
    drop(one);
    let left = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(cluster.psql("postgres", &left), "0");
    assert_eq!(cluster.psql("postgres", "SHOW wal_level"), "logical");
}

#[test]
fn postgres_keeps_its_data_over_stops_and_kills() {
    let cluster = Cluster::options().durable().setting("max_slot_wal_keep_size", "8MB").start();
    let database = cluster.database();
    assert_eq!(database.psql("SHOW fsync"), "on");
    assert_eq!(database.psql("SHOW max_slot_wal_keep_size"), "8MB");
    let major = database.psql("SELECT current_setting('server_version_num')::int / 10000");
    assert_eq!(major, cluster.major().to_string());
    database.psql("CREATE TABLE t (id int)");
    let url = database.url();
    for (n, stop) in [Cluster::stop_immediate, Cluster::stop_fast, Cluster::kill9].into_iter().enumerate() {
        database.psql(&format!("INSERT INTO t VALUES ({n})"));
        stop(&cluster);
        assert!(database.try_psql("SELECT 1").is_err());
        cluster.start_again();
        assert_eq!(database.url(), url);
        assert_eq!(database.psql("SELECT count(*) FROM t"), (n + 1).to_string());
    }
    cluster.restart();
    assert!(cluster.log().contains("database system was not properly shut down"));
}

#[test]
fn postgres_asks_for_passwords_and_shows_its_certificate() {
    let cluster = Cluster::options().tls().scram("reader", "secret").start();
    let database = cluster.database();
    let connect = |url: &str| {
        let mut psql = Command::new("psql");
        psql.args([
            "-X",
            "-w",
            "-t",
            "-A",
            url,
            "-c",
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        ]);
        psql.stdin(Stdio::null()).output().unwrap()
    };
    let tls = format!("?sslmode=verify-full&sslrootcert={}", cluster.ca().display());
    let output = connect(&(database.url_as("reader", "secret") + &tls));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"t\n");
    assert!(!connect(&(database.url_as("reader", "wrong") + &tls)).status.success());
}

#[test]
fn postgres_is_reached_through_the_pooler() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let pooler = PgBouncer::start(cluster);
    let mut psql = Command::new("psql");
    psql.args(["-X", "-t", "-A", &pooler.url(database.name()), "-c", "SELECT current_database()"]);
    let output = psql.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), database.name(), "{}", pooler.log());
}

/// Not a test of its own: what the next one kills. It ends with its input.
#[test]
#[ignore = "started by another test"]
fn postgres_holder() {
    let cluster = Cluster::shared();
    println!("\ncluster {} {}", cluster.pid(), cluster.directory().display());
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn postgres_goes_with_the_process_that_started_it() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "postgres_holder"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.starts_with("cluster ")).expect("the cluster starts");
    let [_, pid, directory] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let (process, directory) = (Path::new("/proc").join(pid), Path::new(directory));
    assert!(process.exists() && directory.exists());
    holder.kill().unwrap();
    holder.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // One that nobody has waited for stays as a zombie, which has no command line.
    let runs = || std::fs::read(process.join("cmdline")).is_ok_and(|line| !line.is_empty());
    while runs() || directory.exists() {
        assert!(Instant::now() < deadline, "{line} outlives its owner");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
