//! Two servers of one file, without the servers: the marks and epochs that one of them knows may be older than what the
//! other has done.

use super::*;
use crate::databases::sqlite::log::read;
use crate::databases::sqlite::{admin, connect};

const BUSY: Duration = Duration::from_secs(5);

fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

struct Server {
    connection: Connection,
    history: History,
}

impl Server {
    fn start(path: &Path) -> Server {
        let (connection, new) = admin::open(path, BUSY, true).unwrap();
        let history = History::begin(path, &connection, new).unwrap();
        Server { connection, history }
    }

    /// Folds at most so many numbers into the database, in a commit of its own.
    fn fold(&self, room: u64) {
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate).unwrap();
        let pending = self.history.fold(&transaction, room).unwrap();
        transaction.commit().unwrap();
        pending.committed();
    }
}

/// A transaction of another process, which writes as many activities.
fn foreign(path: &Path, activities: usize) {
    let mut connection = connect::writer(path, BUSY).unwrap();
    let transaction = connection.transaction().unwrap();
    for _ in 0..activities {
        transaction
            .execute(
                "INSERT INTO activities (action, entity_type, entity_id, feed_id, created_at) \
                 VALUES ('create', 'page', 'p', 1, '2026-01-15T10:30:00.123Z')",
                [],
            )
            .unwrap();
    }
    transaction.commit().unwrap();
}

fn view(server: &Server) -> (Seq, Vec<i64>) {
    let snapshot = server.connection.unchecked_transaction().unwrap();
    let view = read::LogSnapshot::of(&snapshot, &server.history).unwrap();
    let gained = read::follow(&view, Seq::ZERO, 1_000, 1 << 20).unwrap();
    (view.sealed, gained.activities.iter().map(|activity| activity.commit_id).collect())
}

fn without_number(connection: &Connection) -> i64 {
    let sql = "SELECT count(*) FROM activities WHERE commit_id IS NULL";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_transaction_that_another_server_has_folded_in_part_is_still_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let (one, two) = (Server::start(&path), Server::start(&path));
    foreign(&path, 2);
    one.history.number(&one.connection).unwrap();
    foreign(&path, 5);
    one.history.number(&one.connection).unwrap();
    one.fold(4);
    assert_eq!(without_number(&one.connection), 3);
    let whole = (seq(7), vec![2, 2, 7, 7, 7, 7, 7]);
    assert_eq!(view(&two), whole, "it knows of no mark");
    assert_eq!(view(&one), whole);
    // Activities of its own come behind a log that has all its numbers.
    let (transaction, pending) = two.history.begin_numbered(&two.connection).unwrap();
    assert_eq!(without_number(&transaction), 0);
    transaction.commit().unwrap();
    pending.committed();
    assert_eq!(view(&one), whole);
}

#[test]
fn a_server_that_adopts_another_ones_epoch_forgets_how_far_the_log_before_was_folded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let (one, two) = (Server::start(&path), Server::start(&path));
    foreign(&path, 10);
    let head = one.history.number(&one.connection).unwrap();
    one.history.note(&one.connection, head).unwrap();
    two.history.number(&two.connection).unwrap();
    two.history.note(&two.connection, head).unwrap();
    two.fold(6);
    // The database goes back to where it was empty.
    one.connection.execute_batch("DELETE FROM activities; DELETE FROM sqlite_sequence").unwrap();
    let renewed = one.history.settle(&one.connection).unwrap();
    assert_eq!(two.history.settle(&two.connection).unwrap().epoch, renewed.epoch);
    foreign(&path, 3);
    two.history.number(&two.connection).unwrap();
    let (transaction, pending) = two.history.begin_numbered(&two.connection).unwrap();
    transaction.commit().unwrap();
    pending.committed();
    assert_eq!(without_number(&two.connection), 0);
}

#[test]
fn two_servers_that_find_a_restored_database_at_once_draw_one_epoch() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let servers = [Server::start(&path), Server::start(&path)];
        foreign(&path, 3);
        for server in &servers {
            let head = server.history.number(&server.connection).unwrap();
            server.history.note(&server.connection, head).unwrap();
        }
        let before = servers[0].history.served().epoch;
        servers[0].connection.execute_batch("DELETE FROM activities WHERE seq > 1").unwrap();
        let begin = std::sync::Barrier::new(2);
        let drawn = std::thread::scope(|scope| {
            let settling = servers.map(|server| {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    server.history.settle(&server.connection).unwrap().epoch
                })
            });
            settling.map(|settled| settled.join().unwrap())
        });
        assert_ne!(drawn[0], before);
        assert_eq!(drawn[0], drawn[1]);
    }
}
