//! TLS to the database, with a certificate that is looked at, and SCRAM.

use std::process::Command;

use bourn_testkit::Cluster;

use crate::site::{PAGE, PAGES, Site, said};

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_connection_with_a_password_serves_and_a_wrong_authority_is_refused() {
    let cluster = Cluster::options().tls().hba("hostnossl all app all reject").scram("app", "secret").start();
    let mut site = Site::on(&cluster, PAGES, PAGE).await;
    cluster.psql(
        "postgres",
        &format!("ALTER ROLE app REPLICATION; GRANT CREATE ON DATABASE {} TO app", site.database.name()),
    );
    site.sql("ALTER SCHEMA bourn OWNER TO app; GRANT ALL ON ALL TABLES IN SCHEMA bourn, public TO app");
    let (port, database) = (cluster.port(), site.database.name().to_owned());
    let url = |host: &str, more: &str| format!("postgres://app:secret@{host}:{port}/{database}?{more}");
    let ca = cluster.ca().display().to_string();
    for host in ["localhost", "127.0.0.1"] {
        site.reach_by(&url(host, &format!("sslmode=verify-full&sslrootcert={ca}")));
        let server = site.server().await;
        site.sql(&format!("INSERT INTO pages (id) VALUES ('{host}')"));
        site.assert_agrees(&server, "pages").await;
        let plain = site.sql(
            "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename = 'app' AND NOT s.ssl",
        );
        let senders = site.sql(
            "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_replication r USING (pid) WHERE r.usename = 'app' AND s.ssl",
        );
        assert_eq!((&*plain, &*senders), ("0", "1"), "all of it is encrypted, the stream as well");
    }

    // A certificate may be put right while a server waits for its database; here none is.
    site.set("startup_timeout", "1s");
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.crt");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=Another authority",
        ])
        .arg("-keyout")
        .arg(directory.path().join("other.key"))
        .arg("-out")
        .arg(&other)
        .output()
        .unwrap();
    assert!(made.status.success());
    for more in [format!("sslmode=verify-full&sslrootcert={}", other.display()), "sslmode=verify-full".into()]
    {
        site.reach_by(&url("127.0.0.1", &more));
        let refused = site.refused().await;
        assert!(refused.contains("certificate"), "{more}: {refused}");
        let checked = site.run(&["check"]).await;
        assert!(!checked.status.success() && said(&checked).contains("certificate"), "{}", said(&checked));
        assert!(!refused.contains("secret"), "a password is shown: {refused}");
    }
    // Without TLS the database does not let it in, and that is reported as well.
    site.reach_by(&url("127.0.0.1", "sslmode=disable"));
    let refused = site.refused().await;
    assert!(refused.contains("pg_hba.conf") && !refused.contains("secret"), "{refused}");
}
