//! kill -9 of the servers and immediate stops of the database, while many write and read: every change is in the log
//! once, in order, whole, and so is what readers get that resume.

use std::time::Instant;

use bourn_testkit::Cluster;

use crate::load::{Load, on_pages};
use crate::reader::Witnesses;
use crate::site::{PAGE, PAGES, Site};
use crate::support::{Bourn, Client};

const WRITERS: usize = 6;
/// Transactions between two kills.
const BETWEEN: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_killed_in_turn_lose_nothing_and_double_nothing() {
    const KILLS: usize = 20;
    let site = Site::new(PAGES, PAGE).await.eager();
    let mut servers: [Bourn; 2] = [site.server().await, site.server().await];
    let clients: Vec<Client> = servers.iter().map(Bourn::client).collect();
    let witnesses = Witnesses::start(&clients, 1);
    let load = Load::start(&site.database.url(), WRITERS, 100, &on_pages());
    for kill in 0..KILLS {
        load.more(BETWEEN).await;
        let server = &mut servers[kill % 2];
        server.kill().await;
        if kill % 4 < 2 {
            // Long enough for the other one to take over.
            load.more(BETWEEN).await;
        }
        server.begin_again().await;
    }
    let committed = load.end().await;
    assert!(committed > KILLS * BETWEEN, "{committed} transactions");
    witnesses.agree(&site, &clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_as_if_the_power_went_loses_nothing_and_doubles_nothing() {
    const STOPS: usize = 5;
    let cluster = Cluster::start();
    let site = Site::on(&cluster, PAGES, PAGE).await.eager();
    let servers = [site.server().await, site.server().await];
    let clients: Vec<Client> = servers.iter().map(Bourn::client).collect();
    let witnesses = Witnesses::start(&clients, 2);
    let load = Load::start(&site.database.url(), WRITERS, 200, &on_pages());
    for _ in 0..STOPS {
        load.more(2 * BETWEEN).await;
        cluster.stop_immediate();
        cluster.start_again();
        // Capture comes back by itself.
        let head = || site.sql("SELECT head FROM bourn.log").parse::<u64>().unwrap();
        let (before, began) = (head(), Instant::now());
        crate::support::eventually("capture goes on", async || head() > before).await;
        println!("capture went on after {:?}", began.elapsed());
    }
    load.end().await;
    witnesses.agree(&site, &clients).await;
}
