//! Two servers on one database: the one that captures, and one that only follows.

use anyhow::Result;
use tokio::task::JoinSet;

use super::latency::{self, FOLLOW};
use super::site::Site;
use crate::commit_to_event::follow;
use crate::report;

pub(super) async fn run(site: &Site<'_>) -> Result<()> {
    if site.options.without_bourn {
        return Ok(());
    }
    report::progress("a leader and a follower");
    let database = site.database();
    site.prepare(&database).await?;
    // The first takes the slot before there is a second.
    let leader = site.ready(&database).await?;
    let follower = site.ready(&database).await?;
    let mut tasks = JoinSet::new();
    let readers = vec![
        follow(&mut tasks, leader.address, FOLLOW).await?,
        follow(&mut tasks, follower.address, FOLLOW).await?,
    ];
    let figures = latency::measure(site, &database, readers).await?;
    let title = format!("Two servers on one database, one writer, {} commits/s", site.options.rate);
    let mut table = latency::table(&title);
    figures.row(&mut table, &["reader at the leader", "reader at the follower"]);
    table.print();
    leader.end().await?;
    follower.end().await
}
