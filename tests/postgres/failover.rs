//! The server that captures is killed, hangs, loses its connection, or is superseded: another goes on within five
//! seconds, and nothing is lost or done twice.

use std::sync::OnceLock;
use std::time::Duration;

use bourn_testkit::Cluster;

use crate::load::{Load, on_pages};
use crate::reader::Witnesses;
use crate::site::{PAGE, PAGES, Site, leader};
use crate::support::{Bourn, Client, eventually};

const SOON: Duration = Duration::from_secs(5);
const WRITERS: usize = 3;

/// A database on a cluster that only these tests write to: the server that takes over reads the write-ahead log of all of it.
async fn quiet_site() -> Site {
    static QUIET: OnceLock<Cluster> = OnceLock::new();
    let mut site = Site::on(QUIET.get_or_init(Cluster::start), PAGES, PAGE).await;
    site.set("long_poll_timeout", "500ms");
    site
}

async fn two_servers(site: &Site) -> ([Bourn; 2], Vec<Client>) {
    let servers = [site.server().await, site.server().await];
    let clients = servers.iter().map(Bourn::client).collect();
    (servers, clients)
}

#[track_caller]
fn assert_soon(took: Duration, after: &str) {
    assert!(took < SOON, "after {after} it took {took:?} until a change was captured");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_within_five_seconds() {
    let site = quiet_site().await;
    let (mut servers, clients) = two_servers(&site).await;
    let witnesses = Witnesses::start(&clients, 3);
    let load = Load::start(&site.database.url(), WRITERS, 300, &on_pages());
    for round in 0..2 {
        let leads = leader(&servers).await;
        servers[leads].kill().await;
        assert_soon(site.time_to_capture(&format!("killed{round}")).await, "kill -9");
        servers[leads].begin_again().await;
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_hands_over_at_once() {
    let site = quiet_site().await;
    let (mut servers, _) = two_servers(&site).await;
    let leads = leader(&servers).await;
    servers[leads].terminate();
    let (fine, _) = servers[leads].ended().await;
    assert!(fine, "{}", servers[leads].log());
    let took = site.time_to_capture("stopped").await;
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hangs_is_replaced_and_does_no_harm_when_it_goes_on() {
    let site = quiet_site().await;
    let (servers, clients) = two_servers(&site).await;
    let witnesses = Witnesses::start(&clients, 4);
    let load = Load::start(&site.database.url(), WRITERS, 400, &on_pages());
    for round in 0..2 {
        load.more(50).await;
        let leads = leader(&servers).await;
        servers[leads].freeze();
        assert_soon(site.time_to_capture(&format!("hung{round}")).await, "SIGSTOP");
        load.more(50).await;
        servers[leads].thaw();
        load.more(50).await;
        assert_eq!(leader(&servers).await, 1 - leads, "the one that hung knows that it does not lead");
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_connections_are_cut_is_replaced_or_comes_back() {
    let site = quiet_site().await;
    let (_servers, clients) = two_servers(&site).await;
    let witnesses = Witnesses::start(&clients, 5);
    let load = Load::start(&site.database.url(), WRITERS, 500, &on_pages());
    for round in 0..3 {
        load.more(50).await;
        eventually("the stream is sent", async || site.sender().is_some()).await;
        site.sql(&format!("SELECT pg_terminate_backend({})", site.sender().unwrap()));
        assert_soon(site.time_to_capture(&format!("cut{round}")).await, "the end of the replication stream");
    }
    for round in 0..3 {
        load.more(50).await;
        site.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bourn'",
        );
        assert_soon(site.time_to_capture(&format!("all{round}")).await, "the end of every connection");
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_the_fence_stops_appends_no_more_and_another_goes_on() {
    const TIMES: usize = 5;
    let site = quiet_site().await;
    let (servers, clients) = two_servers(&site).await;
    let witnesses = Witnesses::start(&clients, 6);
    let load = Load::start(&site.database.url(), WRITERS, 600, &on_pages());
    for time in 0..TIMES {
        load.more(30).await;
        leader(&servers).await;
        let fenced = || -> usize {
            let told = |server: &Bourn| server.log().matches("another server captures now").count();
            servers.iter().map(told).sum()
        };
        let before = fenced();
        let fence: i64 = site.sql("UPDATE bourn.log SET fence = fence + 1 RETURNING fence").parse().unwrap();
        assert_soon(site.time_to_capture(&format!("fenced{time}")).await, "the fence");
        eventually("the superseded leader finds out", async || fenced() > before).await;
        let now: i64 = site.sql("SELECT fence FROM bourn.log").parse().unwrap();
        assert!(now > fence, "whoever captures has raised the fence in turn");
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}
