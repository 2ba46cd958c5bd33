//! Scenarios: the built server as its users meet it, over real sockets, on real files, with other processes
//! writing and signals arriving.

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

#[path = "../support/mod.rs"]
mod support;

mod access;
mod bad_input;
mod bodies;
mod browser;
mod catch_up;
mod clients;
mod commands;
mod conformance;
mod crashes;
mod database_faults;
mod embedded;
mod first_comparison;
mod foreign_sqlite;
mod ground;
mod hostile_rows;
mod listeners;
mod live;
mod nginx;
mod operations;
mod other_writers;
mod readme;
mod retention;
mod several_tables;
mod stored_streams;
mod subscriptions;
mod subscriptions_in_time;
#[cfg(feature = "failpoints")]
mod supervision;
mod time_travel;
mod tokens;
mod transactions;
mod two_servers;
mod undo;
mod writes;

/// Makes a test of each scenario, on each of these grounds.
macro_rules! on {
    ($($ground:ident: $kind:ident),*; $module:ident :: $names:tt) => { $( on!(@$ground $kind $module $names); )* };
    (@$ground:ident $kind:ident $module:ident { $($name:ident),* $(,)? }) => {
        mod $ground { $(
            #[tokio::test]
            async fn $name() { crate::$module::$name::<crate::ground::$kind>().await; }
        )* }
    };
}

/// The official suite of stored streams.
mod official {
    on!(sqlite: Sqlite, postgres: Postgres, pooled_postgres: Pooled; conformance::{
        the_official_conformance_suite_passes_whole,
    });
}

mod stored {
    on!(sqlite: Sqlite, postgres: Postgres; stored_streams::{
        history_is_cached_for_long_and_the_tail_is_not,
        a_stream_made_anew_does_not_take_the_old_ones_offsets,
        paths_and_sizes_have_limits_and_the_answer_says_which,
        forks_of_forks_keep_what_they_need_while_everything_around_them_is_deleted,
        an_event_stream_follows_appends_and_ends_with_the_stream,
        live_readers_of_a_deleted_stream_are_told,
        a_stop_lets_live_readers_end_in_good_order,
        a_stream_that_is_read_under_load_does_not_expire,
        two_servers_of_one_database_see_each_others_appends,
        an_acknowledged_append_survives_kill_9_and_is_there_once,
    });
}

mod subscribed {
    on!(sqlite: Sqlite, postgres: Postgres; subscriptions::{
        a_webhook_leads_to_no_private_address_unless_the_operator_says_so,
        subscriptions_and_what_they_follow_are_limited,
        work_outlives_a_crash_and_a_lease_that_ends_passes_it_on,
        a_webhook_that_fails_is_shown_and_tried_again,
        an_append_right_after_the_subscription_wakes_it,
        a_wake_waits_for_its_stream_to_be_made,
        more_streams_than_allowed_are_refused_before_they_are_looked_up,
    });
}

mod shared {
    on!(sqlite: Sqlite, postgres: Postgres; two_servers::{
        concurrent_appends_through_both_are_in_one_order_and_none_is_lost,
        a_producer_is_the_same_whichever_server_it_comes_by,
        a_live_reader_of_the_other_server_sees_each_append_at_once,
        a_server_that_dies_takes_no_acknowledged_append_with_it,
    });
}

mod shared_by_the_network {
    on!(postgres: Postgres, pooled_postgres: Pooled; two_servers::{
        what_one_has_acknowledged_the_other_knows_at_once,
        forks_that_are_made_and_deleted_through_both_leave_nothing_behind,
    });
}
