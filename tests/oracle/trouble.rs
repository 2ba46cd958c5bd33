//! Trouble for the servers and for the network before them: kills, stops, cuts, silence. One at a time; the database's own
//! trouble goes on beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bourn_testkit::{Proxy, Way};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::Mutex;

use crate::journal::Journal;
use crate::schema::Table;
use crate::support::{Bourn, PATIENCE};
use crate::world::World;

/// The longest time that the network before a server is in trouble.
const SILENT_MS: u64 = 2_500;

/// A server, and the network before it.
pub struct Server {
    pub process: Mutex<Bourn>,
    pub front: Proxy,
    /// Whether it may be killed.
    pub mortal: bool,
}

impl Server {
    /// Starts the process again until it listens: the database may be away.
    async fn begin(process: &mut Bourn, journal: &Journal) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match process.try_begin_again().await {
                Ok(()) => return,
                Err(said) => {
                    journal.count("starts that failed");
                    assert!(tokio::time::Instant::now() < deadline, "the server does not start: {said}");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        }
    }

    /// Notes a process that has ended without being told to, and starts it again.
    pub async fn watch(&self, journal: &Journal) {
        let mut process = self.process.lock().await;
        if process.has_ended() {
            let log = process.recent_log();
            let from = log.ceil_char_boundary(log.len().saturating_sub(1_500));
            journal.fault(format!("the server ended by itself: {}", &log[from..]));
            let _ = process.ended().await;
            Self::begin(&mut process, journal).await;
        }
    }
}

/// What the troublemakers share.
pub struct Trouble<W> {
    pub world: Arc<W>,
    pub tables: Vec<Table>,
    pub servers: Vec<Arc<Server>>,
    pub journal: Arc<Journal>,
    pub stop: Arc<AtomicBool>,
    /// The longest pause between two troubles, in milliseconds.
    pub pause: u64,
    /// Held by what would make a start of a server fail.
    pub calm: Mutex<()>,
}

impl<W: World> Trouble<W> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn rest(&self, random: &mut StdRng) {
        tokio::time::sleep(Duration::from_millis(random.random_range(self.pause / 4..=self.pause))).await;
    }

    /// Trouble of the database's kind, until it is stopped.
    pub async fn of_the_database(self: Arc<Self>, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.stopped() {
            self.rest(&mut random).await;
            self.world.trouble(&self.tables, &mut random, &self.journal).await;
        }
    }

    /// Trouble of the servers and of the network before them, until it is stopped.
    pub async fn of_the_servers(self: Arc<Self>, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.stopped() {
            self.rest(&mut random).await;
            let server = self.servers.choose(&mut random).unwrap();
            server.watch(&self.journal).await;
            match random.random_range(0..10) {
                0..3 if server.mortal => self.kill(server, &mut random).await,
                3 if server.mortal => self.stop_and_start(server).await,
                4 => {
                    let _calm = self.calm.lock().await;
                    self.world.outage(&mut random, &self.journal).await;
                }
                5 if server.mortal => {
                    self.journal.trouble("server frozen");
                    let process = server.process.lock().await;
                    process.freeze();
                    tokio::time::sleep(Duration::from_millis(random.random_range(100..3_000))).await;
                    process.thaw();
                }
                _ => self.network(server, &mut random).await,
            }
        }
    }

    async fn kill(&self, server: &Server, random: &mut StdRng) {
        let _calm = self.calm.lock().await;
        let mut process = server.process.lock().await;
        self.journal.trouble("server killed");
        process.kill().await;
        if random.random_bool(0.5) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        }
        Server::begin(&mut process, &self.journal).await;
    }

    async fn stop_and_start(&self, server: &Server) {
        let _calm = self.calm.lock().await;
        let mut process = server.process.lock().await;
        self.journal.trouble("server stopped");
        process.terminate();
        let (graceful, took) = process.ended().await;
        if !graceful || took > Duration::from_secs(20) {
            self.journal.fault(format!("a server that is told to stop: success {graceful}, after {took:?}"));
        }
        Server::begin(&mut process, &self.journal).await;
    }

    async fn network(&self, server: &Server, random: &mut StdRng) {
        let (front, time) = (&server.front, random.random_range(50..SILENT_MS));
        let way = *[Way::Up, Way::Down, Way::Both].choose(random).unwrap();
        match random.random_range(0..4) {
            0 => {
                self.journal.trouble("readers cut off");
                front.cut();
                return;
            }
            1 => {
                self.journal.trouble(format!("readers' network slow: {way:?} {time} ms"));
                front.delay(way, Duration::from_millis(random.random_range(5..200)));
            }
            2 => {
                self.journal.trouble(format!("readers' network half-open: {way:?} {time} ms"));
                front.swallow(way);
            }
            _ => {
                self.journal.trouble(format!("readers' network narrow: {way:?} {time} ms"));
                front.limit(way, random.random_range(10_000..1_000_000));
            }
        }
        tokio::time::sleep(Duration::from_millis(time)).await;
        tokio::task::block_in_place(|| front.heal());
    }
}
