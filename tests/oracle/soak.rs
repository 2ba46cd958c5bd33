//! The soak: both worlds one after the other for hours, with kills of the servers and of the database. From time to time
//! everything becomes quiet and is compared; the memory of a server that lives through all of it must stay flat.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::postgres::Postgres;
use crate::run::{Pace, Scene};
use crate::sqlite::Sqlite;
use crate::world::World;

/// How long the load goes on between two comparisons.
const LEG: Duration = Duration::from_secs(120);
/// How much more memory than after its first tenth a server may have at the end.
const GROWTH: f64 = 1.5;
/// Below it growth is no sign.
const SMALL: u64 = 64 << 20;
const PACE: Pace = Pace { writers: 15, trouble: 4_000, one_lives: true };

/// What a soak found.
#[derive(Debug, Default)]
struct Figures {
    lost: Vec<String>,
    faults: Vec<String>,
    memory: Vec<u64>,
}

pub async fn soak(seed: u64) {
    let hours: f64 =
        std::env::var("BOURN_SOAK_HOURS").ok().and_then(|hours| hours.parse().ok()).unwrap_or(1.0);
    let half = Duration::from_secs_f64(hours * 1_800.0);
    let wrong = one::<Postgres>(seed, half).await + one::<Sqlite>(seed, half).await;
    assert_eq!(wrong, 0, "the soak of seed {seed} found faults");
}

async fn one<W: World>(seed: u64, time: Duration) -> usize {
    println!("{} seed {seed}", W::NAME);
    let mut scene = Scene::<W>::start(seed, PACE).await;
    let (began, mut figures, mut round) = (Instant::now(), Figures::default(), 0);
    scene.make_trouble();
    while began.elapsed() < time {
        let leg = LEG.min(time.saturating_sub(began.elapsed()));
        let until = Instant::now() + leg;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(5).min(leg)).await;
            let steady = scene.servers.last().unwrap();
            steady.watch(&scene.shared.journal).await;
            figures.memory.push(steady.process.lock().await.resident());
        }
        scene.quiet().await;
        let lost = scene.differences().await;
        let journal = &scene.shared.journal;
        println!(
            "{:.0} s: {} transactions, {} events delivered, {} MiB resident, {} differences, {} faults",
            began.elapsed().as_secs_f64(),
            journal.committed.load(Ordering::Relaxed),
            journal.delivered.load(Ordering::Relaxed),
            figures.memory.last().unwrap_or(&0) >> 20,
            lost.len(),
            journal.faults().len()
        );
        if !lost.is_empty() {
            figures.lost = lost;
            break;
        }
        round += 1;
        if began.elapsed() < time {
            scene.go_on(round);
        }
    }
    let journal = scene.shared.journal.clone();
    figures.faults = scene.end().await;
    report::<W>(&figures, &journal)
}

/// Prints the figures; gives how many of them are wrong.
fn report<W: World>(figures: &Figures, journal: &crate::journal::Journal) -> usize {
    let at = |part: f64| {
        let last = figures.memory.len().saturating_sub(1);
        let places = (0..figures.memory.len()).find(|place| *place as f64 >= last as f64 * part);
        places.and_then(|place| figures.memory.get(place)).copied().unwrap_or_default()
    };
    let (start, middle, end) = (at(0.1), at(0.5), at(1.0));
    let flat = end < SMALL || end as f64 <= start as f64 * GROWTH;
    let kills = [
        "server killed",
        "server stopped",
        "database killed",
        "database stopped as if the power went",
        "database restarted",
    ];
    println!("\n== {} ==\n{}", W::NAME, journal.figures());
    println!("  kills and stops: {}", kills.iter().map(|kill| journal.counted(kill)).sum::<u64>());
    println!("  differences (lost): {}", figures.lost.len());
    println!("  faults (doubled, torn, out of order, two bodies): {}", figures.faults.len());
    println!(
        "  resident MiB after a tenth, in the middle, at the end: {} {} {}",
        start >> 20,
        middle >> 20,
        end >> 20
    );
    println!("  memory is flat: {flat}");
    for wrong in figures.lost.iter().chain(&figures.faults) {
        println!("\n{wrong}");
    }
    figures.lost.len() + figures.faults.len() + usize::from(!flat)
}
