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
mod derived;
mod forms;
mod model;
mod mutations;
mod permits;
mod postgres;
mod reconcile;
mod sqlite;
mod sqlite_only;
mod streams;
#[path = "../support/tokens.rs"]
#[allow(dead_code, reason = "each of the test targets uses its part")]
mod tokens;

/// Makes a test of each contract, for each storage.
macro_rules! contracts {
    ($($module:ident :: { $($name:ident),* $(,)? })*) => {
        mod on_sqlite { $( $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() { crate::$module::$name::<crate::sqlite::Sqlite>().await; }
        )* )* }
        mod on_postgres { $( $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() { crate::$module::$name::<crate::postgres::Postgres>().await; }
        )* )* }
    };
}

contracts! {
    streams::{
        what_is_appended_is_read_back_whatever_was_forked_and_deleted,
        concurrent_appends_are_in_one_order_and_none_is_lost,
        a_repeated_append_is_done_once_also_after_a_restart,
        an_idle_stream_expires_and_one_in_use_does_not,
        what_deleted_streams_leave_behind_is_removed,
        a_subscription_is_changed_only_as_it_was_read,
    }
    mutations::{
        a_mutation_is_in_the_log_with_its_ids,
        a_repeated_mutation_is_not_done_again,
        concurrent_repeats_are_done_once,
        a_refused_mutation_leaves_no_trace,
        mutations_that_share_a_commit_are_transactions_of_their_own,
        a_cascade_undoes_what_was_built_on_top,
    }
    permits::{
        a_row_is_written_by_those_who_may_write_where_it_was_and_where_it_ends,
        a_transaction_is_known_to_its_caller_and_to_those_who_see_its_history,
    }
    capture::{
        a_foreign_transaction_has_one_number_and_one_end,
        what_is_rolled_back_is_never_seen,
        a_writer_that_knows_nothing_passes_no_ids_on,
        a_delete_may_be_announced,
        a_row_that_moves_leaves_one_scope_and_enters_the_other,
        soft_deletion_is_deletion,
        an_update_that_changes_nothing_is_nothing,
        a_stamp_counts_once,
    }
    derived::{ a_stream_has_what_the_log_has_of_its_types_and_scope }
    reconcile::{
        existing_rows_become_the_beginning_of_the_log,
        what_was_missed_is_made_good,
    }
    model::{ a_stream_adds_up_to_the_table_whatever_happens }
}
