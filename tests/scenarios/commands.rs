//! The command line: settings and their precedence, checking and preparing a database.

use std::process::Output;

use serde_json::json;

use crate::support::{Bourn, eventually, sqlite3};

async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Bourn::output(arguments, variables).await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn flags_win_over_variables_and_variables_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bourn.toml");
    std::fs::write(&file, "long_poll_timeout = '1s'\nsse_heartbeat = '2s'\nsse_retry = '3s'\n").unwrap();
    let variables = [
        ("BOURN_CONFIG", file.to_str().unwrap()),
        ("BOURN_LONG_POLL_TIMEOUT", "4s"),
        ("BOURN_SSE_HEARTBEAT", "5s"),
    ];
    let output = run(&["config", "--long-poll-timeout", "6s"], &variables).await;
    let printed = text(&output.stdout);
    for line in [
        "long_poll_timeout = \"6s\"",
        "sse_heartbeat = \"5s\"",
        "sse_retry = \"3s\"",
        "listen = \"127.0.0.1:4437\"",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
}

#[tokio::test]
async fn what_is_not_understood_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bourn.toml");
    std::fs::write(&file, "colour = 'red'\n").unwrap();
    for (arguments, variables, named) in [
        (vec!["serve", "--colour", "red"], vec![], "--colour"),
        (vec!["config"], vec![("BOURN_LONG_POLL_TIMEOUT", "soon")], "soon"),
        (vec!["config", "--config", file.to_str().unwrap()], vec![], "colour"),
        (vec!["config", "--config", "/nowhere.toml"], vec![], "/nowhere.toml"),
        (vec!["config", "--database", "oracle:x"], vec![], "oracle"),
    ] {
        let output = run(&arguments, &variables).await;
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn variables_that_are_no_settings_are_warned_of_and_ignored() {
    // The first is what Kubernetes sets for a Service of this name.
    let output = run(&["config"], &[("BOURN_SERVICE_HOST", "10.0.0.1"), ("BOURN_LOG", "debug")]).await;
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("BOURN_SERVICE_HOST"), "{said}");
    assert!(!said.contains("BOURN_LOG"), "{said}");
}

#[tokio::test]
async fn help_tells_every_default() {
    let help = text(&run(&["serve", "--help"], &[]).await.stdout);
    for default in ["[default: 127.0.0.1:4437]", "[default: sqlite:bourn.db]", "[default: 20s]"] {
        assert!(help.contains(default), "{default}: {help}");
    }
}

#[tokio::test]
async fn a_printed_configuration_holds_no_password_unless_it_is_asked_for() {
    let database = "postgres://app:secret@db/app?sslmode=require";
    let arguments = ["config", "--database", database, "--direct-database", database];
    let printed = text(&run(&arguments, &[]).await.stdout);
    assert!(
        !printed.contains("secret") && printed.contains("postgres://app@db/app?sslmode=require"),
        "{printed}"
    );
    let printed = text(&run(&[&arguments[..], &["--show-secrets"]].concat(), &[]).await.stdout);
    assert!(printed.contains(database), "{printed}");
}

#[tokio::test]
async fn commands_about_tables_say_when_they_are_about_the_demos() {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", directory.path().join("new.db").display());
    for command in [&["check"][..], &["prepare"], &["prepare", "--apply"]] {
        let output = run(&[command, &["--database", &database]].concat(), &[]).await;
        let said = text(&output.stderr);
        assert!(output.status.success() && said.contains("the demo's tables"), "{command:?}: {said}");
    }
    let output = run(&["prepare", "--apply", "--database", &database], &[]).await;
    assert!(text(&output.stdout).contains("is prepared for pages, attachments"));
}

#[tokio::test]
async fn a_database_that_is_missing_is_not_made_where_its_tables_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bourn.toml");
    std::fs::write(&file, "[[entity]]\ntype = 'task'\ntable = 'tasks'\n").unwrap();
    let missing = directory.path().join("no such directory").join("mistyped.db");
    for path in [directory.path().join("mistyped.db"), missing] {
        let url = format!("sqlite:{}", path.display());
        for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["check"], &["prepare", "--apply"]] {
            let settings = ["--config", file.to_str().unwrap(), "--database", &url];
            let output = run(&[command, &settings].concat(), &[]).await;
            let said = text(&output.stderr) + &text(&output.stdout);
            assert!(
                !output.status.success() && said.contains("there is no such file"),
                "{command:?}: {said}"
            );
            assert!(!path.exists(), "{command:?} makes the file");
        }
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_served_is_named_at_the_start_and_is_not_read_as_if_it_were_complete() {
    let config = "[[entity]]\ntype = 'task'\ntable = 'tasks'\n[[entity]]\ntype = 'note'\ntable = 'notes'\n";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bourn.toml");
    std::fs::write(&file, config).unwrap();
    let path = directory.path().join("app.db");
    sqlite3(&path, "CREATE TABLE tasks (id TEXT PRIMARY KEY)");
    let bourn =
        Bourn::begin_on(&format!("sqlite:{}", path.display()), &[("config", file.to_str().unwrap())]).await;
    let client = bourn.client();
    for path in ["", "?offset=-1", "?offset=now", "?offset=-1&live=long-poll", "?offset=-1&live=sse"] {
        let answer = client.get(&format!("/v1/entities/notes{path}")).await;
        answer.assert_error(503, "ENTITY_UNAVAILABLE");
    }
    for path in ["", "?offset=-1", "?offset=now"] {
        assert_eq!(client.get(&format!("/v1/entities/tasks{path}")).await.status, 200);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let bourn = Bourn::start(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", directory.path().join("other.db").display());
    let output = run(&["serve", "--listen", bourn.address(), "--database", &database], &[]).await;
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains(&format!("cannot listen on {}", bourn.address())),
        "{}",
        text(&output.stderr)
    );
    assert!(!directory.path().join("other.db").exists(), "it leaves nothing behind");
}

#[tokio::test]
async fn an_existing_database_is_checked_prepared_and_served_from_its_first_row() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("app.db");
    sqlite3(
        &database,
        "CREATE TABLE tasks (n INTEGER PRIMARY KEY, title TEXT NOT NULL, done BOOLEAN NOT NULL DEFAULT 0, due DATETIME);
         INSERT INTO tasks (title, due) VALUES ('write', '2026-01-15 10:30:00'), ('read', NULL);
         CREATE TABLE notes (body TEXT);",
    );
    let file = directory.path().join("bourn.toml");
    let both =
        "[[entity]]\ntype = 'task'\ntable = 'tasks'\nkey = 'n'\n[[entity]]\ntype = 'note'\ntable = 'notes'\n";
    std::fs::write(&file, both).unwrap();
    let url = format!("sqlite:{}", database.display());
    let settings = ["--config", file.to_str().unwrap(), "--database", &url];
    let with = |command: &[&'static str]| [command, &settings.map(|s| &*s.to_owned().leak())].concat();

    let checked = run(&with(&["check"]), &[]).await;
    let said = text(&checked.stdout);
    assert!(
        !checked.status.success() && said.contains("FAIL note: table `notes` has no column `id`"),
        "{said}"
    );
    assert!(said.contains("ok   task: table `tasks` with 4 columns"), "{said}");

    std::fs::write(&file, both.split("[[entity]]\ntype = 'note'").next().unwrap()).unwrap();
    assert!(run(&with(&["check"]), &[]).await.status.success());
    let printed = text(&run(&with(&["prepare"]), &[]).await.stdout);
    assert!(
        printed.contains("CREATE TABLE activities") && printed.contains("bourn_task__insert"),
        "{printed}"
    );
    assert_eq!(
        sqlite3(&database, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'bourn%'"),
        "0",
        "it was only printed"
    );
    // What is printed does the same as --apply.
    let by_hand = directory.path().join("by-hand.db");
    std::fs::copy(&database, &by_hand).unwrap();
    sqlite3(&by_hand, &printed);
    let config = std::fs::read_to_string(&file).unwrap();
    let served =
        Bourn::start_with(&config, &[], |database| std::fs::copy(&by_hand, database).map(|_| ()).unwrap())
            .await;
    assert_eq!(served.client().read_all("/v1/entities/tasks", "-1").await.0.len(), 2);
    assert!(run(&with(&["prepare", "--apply"]), &[]).await.status.success());

    let config = std::fs::read_to_string(&file).unwrap();
    let prepared = std::fs::read(&database).unwrap();
    let bourn = Bourn::start_with(&config, &[], |database| std::fs::write(database, prepared).unwrap()).await;
    let client = bourn.client();
    eventually("the rows are in the stream", async || {
        client.read_all("/v1/entities/tasks", "-1").await.0.len() == 2
    })
    .await;
    let (messages, _) = client.read_all("/v1/entities/tasks", "-1").await;
    assert_eq!(messages[0]["key"], "1");
    assert_eq!(
        messages[0]["value"],
        json!({ "n": 1, "title": "write", "done": false, "due": "2026-01-15T10:30:00" })
    );
    let made = client
        .post("/v1/entities/tasks", &[("x-transaction-id", "t1")], &json!({ "title": "rest", "done": true }))
        .await;
    assert_eq!((made.status, &made.json()["n"]), (201, &json!(3)));
    assert_eq!(client.get("/v1/transactions/t1").await.json()["state"], "confirmed");
    client
        .post("/v1/entities/tasks", &[], &json!({ "done": true }))
        .await
        .assert_error(400, "MISSING_COLUMN");
    client
        .post("/v1/entities/tasks", &[], &json!({ "n": "x", "title": "y" }))
        .await
        .assert_error(400, "INVALID_ID");
    assert_eq!(client.delete("/v1/entities/tasks/3", &[("x-transaction-id", "t2")]).await.status, 200);
    client.get("/v1/entities/tasks/03").await.assert_error(404, "NOT_FOUND");
    let (messages, _) = client.read_all("/v1/entities/tasks", "-1").await;
    let last = messages.last().unwrap();
    assert_eq!((&last["headers"]["operation"], &last["headers"]["txid"]), (&json!("delete"), &json!("t2")));
}

#[tokio::test]
async fn tables_of_a_newer_version_are_refused_in_words() {
    let mut bourn = Bourn::start(&[]).await;
    bourn.client().make_page("p", "t").await;
    let url = bourn.url().to_owned();
    bourn.sql("INSERT INTO bourn_migrations VALUES (99, '2030-01-01T00:00:00.000Z')");
    bourn.terminate();
    bourn.ended().await;
    let schema = || bourn.sql("SELECT group_concat(name || sql) FROM sqlite_master");
    let before = schema();
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["check"], &["prepare", "--apply"]] {
        let output = run(&[command, &["--database", &url]].concat(), &[]).await;
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(!output.status.success(), "{command:?}: {said}");
        assert!(
            said.contains("its log was made by a newer version of bourn (layout 99; this version knows"),
            "{command:?}: {said}"
        );
    }
    assert!(schema() == before, "nothing was changed");
}
