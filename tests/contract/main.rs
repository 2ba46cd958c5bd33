//! The contract of a storage, as one suite that runs over every storage there is: what is written, by whomever,
//! is in the log once, in commit order, whole, with honest metadata; and what is read back is what is there.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::semicolon_if_nothing_returned,
    reason = "tests"
)]

mod backend;
mod capture;
mod forms;
mod model;
mod mutations;
mod reconcile;

use backend::Sqlite;

/// Makes a test of each contract, for each storage.
macro_rules! contracts {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        mod sqlite { $( $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$module::$name::<super::Sqlite>().await; }
        )* )* }
    };
}

contracts! {
    mutations::{
        a_mutation_is_in_the_log_with_its_ids,
        a_repeated_mutation_is_not_done_again,
        concurrent_repeats_are_done_once,
        a_refused_mutation_leaves_no_trace,
        mutations_that_share_a_commit_are_transactions_of_their_own,
        a_cascade_undoes_what_was_built_on_top,
    }
    capture::{
        a_foreign_transaction_has_one_number_and_one_end,
        what_is_rolled_back_is_never_seen,
        a_writer_that_knows_nothing_passes_no_ids_on,
        a_delete_may_be_announced,
        a_row_that_moves_leaves_one_scope_and_enters_the_other,
        soft_deletion_is_deletion,
        an_update_that_changes_nothing_is_nothing,
    }
    forms::{ every_value_has_one_form }
    reconcile::{
        existing_rows_become_the_beginning_of_the_log,
        what_was_missed_is_made_good,
    }
    model::{ a_stream_adds_up_to_the_table_whatever_happens }
}

mod sqlite_only {
    //! What only SQLite's writers can do.
    use super::backend::{Backend, Sqlite};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replaced_row_is_an_update_whether_or_not_triggers_recurse() {
        let db = Sqlite::open(&[]).await;
        db.sql("INSERT INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'acme', 'a', '{\"insert\":\"t1\"}')");
        db.sql("PRAGMA recursive_triggers = OFF; REPLACE INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'acme', 'b', '{\"insert\":\"t1\"}')");
        db.sql("PRAGMA recursive_triggers = OFF; REPLACE INTO pages (id, organization_id, name, transactions) VALUES ('p1', 'beta', 'c', '{\"insert\":\"t2\"}')");
        db.sql("PRAGMA recursive_triggers = ON; REPLACE INTO pages (id, organization_id, name) VALUES ('p1', 'beta', 'd')");
        let told = db.told(6).await;
        assert_eq!(
            told,
            [
                "create p1 acme t1",
                "update p1 acme -",
                "delete p1 acme t2",
                "create p1 beta t2",
                "delete p1 beta -",
                "create p1 beta -"
            ][..]
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_of_case_is_a_change_whatever_the_collation() {
        let db = Sqlite::open(&[
            "CREATE TABLE tags (id TEXT PRIMARY KEY COLLATE NOCASE, label TEXT COLLATE NOCASE)",
        ])
        .await;
        db.sql("INSERT INTO tags VALUES ('x', 'abc')");
        db.sql("UPDATE tags SET label = 'ABC'");
        db.sql("INSERT OR IGNORE INTO tags VALUES ('x', 'other')");
        assert_eq!(db.told(2).await.len(), 2);
    }
}
