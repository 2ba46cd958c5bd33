//! One run: a world, servers, writers, trouble and readers, and the checks at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bourn_testkit::Proxy;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::cache::Cache;
use crate::checks::{difference, list, part, story, streams};
use crate::features::on;
use crate::journal::Journal;
use crate::readers::{Reader, ReadersState, Way};
use crate::rest::RestWriter;
use crate::schema::{Dialect, Table};
use crate::statements::{Alterations, transaction};
use crate::support::{Bourn, Client};
use crate::trouble::{Server, Trouble};
use crate::world::{Orders, Script, World};

const TABLES: usize = 3;
const WRITERS: u64 = 4;
const REST_WRITERS: u64 = 2;
const SERVERS: usize = 2;
/// How long everybody may take to agree once it is quiet.
const AGREEMENT: Duration = Duration::from_secs(60);
/// Differences that are printed at length.
const STORIES: usize = 4;

/// How hard a run is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The longest pause of a writer between two transactions, in milliseconds.
    pub writers: u64,
    /// The longest pause between two troubles, in milliseconds.
    pub trouble: u64,
    /// Whether the last server is never killed, so that its memory can be followed.
    pub one_lives: bool,
}

pub const CI: Pace = Pace { writers: 15, trouble: 1_500, one_lives: false };

/// Everything that is at work in a run.
pub struct Scene<W: World> {
    pub world: Arc<W>,
    pub tables: Vec<Table>,
    pub servers: Vec<Arc<Server>>,
    pub clients: Vec<Client>,
    pub shared: Arc<ReadersState>,
    stop: Stop,
    work: Vec<JoinHandle<()>>,
    pub readers: Vec<(usize, Option<&'static str>, Reader)>,
    pace: Pace,
    seed: u64,
}

/// Ends the work when it is dropped, also by a failure.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs a world for this long and asserts that it was sound.
pub async fn run<W: World>(seed: u64, time: Duration) {
    println!("{} seed {seed}: BOURN_ORACLE_SEED={seed} repeats it", W::NAME);
    let mut scene = Scene::<W>::start(seed, CI).await;
    scene.make_trouble();
    tokio::time::sleep(time).await;
    scene.quiet().await;
    let journal = scene.shared.journal.clone();
    let faults = scene.end().await;
    println!("{}: {}", W::NAME, journal.figures());
    assert!(
        faults.is_empty(),
        "{} seed {seed} (BOURN_ORACLE_SEED={seed} repeats it): {} faults\n{}\n\ntrouble:\n{}",
        W::NAME,
        faults.len(),
        faults.join("\n\n"),
        journal.troubles()
    );
}

impl<W: World> Scene<W> {
    /// Makes everything up and starts it, but for the trouble.
    pub async fn start(seed: u64, pace: Pace) -> Scene<W> {
        let mut random = StdRng::seed_from_u64(seed);
        let tables: Vec<Table> =
            (0..TABLES).map(|i| Table::make_up(10 * i, &W::PALETTE, &mut random)).collect();
        for table in &tables {
            println!("{}{}", table.create(), table.configuration());
        }
        let world = Arc::new(W::make(&tables, seed).await);
        let journal = Arc::new(Journal::new());
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let shared = Arc::new(ReadersState {
            cache: Cache::default(),
            journal,
            strict_beginning: W::STRICT_BEGINNING || on("strict-beginning"),
            stop: AtomicBool::new(false),
        });
        let mut scene = Scene {
            world,
            tables,
            servers: vec![],
            clients: vec![],
            shared,
            stop,
            work: vec![],
            readers: vec![],
            pace,
            seed,
        };
        // Some of it is there before anybody captures.
        scene.write();
        scene.committed(30).await;
        let several = W::PALETTE.dialect == Dialect::Postgres || on("two-servers-on-a-file");
        let servers = if several { SERVERS } else { 1 };
        for i in 0..servers {
            let process = scene.server().await;
            let front = Proxy::start(process.address().parse().unwrap());
            scene.clients.push(Client::new(&front.address().to_string()));
            let mortal = !pace.one_lives || !several || i + 1 < servers;
            scene.servers.push(Arc::new(Server { process: Mutex::new(process), front, mortal }));
        }
        scene.write_over_rest();
        scene.read();
        scene
    }

    /// A server; the writers may hold the database for a while.
    async fn server(&self) -> Bourn {
        let deadline = Instant::now() + AGREEMENT;
        loop {
            match self.world.server().await {
                Ok(server) => return server,
                Err(said) => {
                    self.shared.journal.count("starts that failed");
                    assert!(Instant::now() < deadline, "{said}");
                }
            }
        }
    }

    async fn committed(&self, count: u64) {
        let journal = &self.shared.journal;
        let wanted = journal.committed.load(Ordering::Relaxed) + count;
        crate::support::eventually("the writers get on", async || {
            journal.committed.load(Ordering::Relaxed) >= wanted
        })
        .await;
    }

    fn orders(&self, name: &str, number: u64, script: Script, pause: u64) -> Orders {
        Orders {
            name: name.to_owned(),
            seed: self.seed.wrapping_mul(31).wrapping_add(number),
            script,
            forgives: number == WRITERS,
            pause,
            stop: self.stop.0.clone(),
            journal: self.shared.journal.clone(),
        }
    }

    fn write(&mut self) {
        for number in 0..WRITERS {
            let tables = self.tables.clone();
            let script: Script = Arc::new(move |random| Some(transaction(&tables, random)));
            let orders = self.orders(&format!("writer {number}"), number, script, self.pace.writers);
            self.work.push(self.world.write(orders));
        }
        let (tables, alterations) =
            (self.tables.clone(), std::sync::Mutex::new(Alterations::of(&self.tables)));
        let script: Script = Arc::new(move |random| {
            random.random_bool(0.3).then(|| alterations.lock().unwrap().next(&tables, random)).flatten()
        });
        let orders = self.orders("migration", WRITERS, script, 2_000);
        self.work.push(self.world.write(orders));
    }

    fn write_over_rest(&mut self) {
        for number in 0..REST_WRITERS {
            let writer = RestWriter {
                clients: self.clients.clone(),
                tables: self.tables.clone(),
                seed: self.seed.wrapping_add(100 + number),
                pause: 3 * self.pace.writers,
                stop: self.stop.0.clone(),
                journal: self.shared.journal.clone(),
            };
            self.work.push(tokio::spawn(writer.run()));
        }
    }

    fn read(&mut self) {
        let mut seed = self.seed.wrapping_add(1_000);
        for (i, table) in self.tables.iter().enumerate() {
            for (scope, stream) in streams(table) {
                let ways = match scope {
                    None => vec![Way::CatchUp, Way::LongPoll, Way::Sse, Way::ListThenFollow, Way::Mixed],
                    Some(_) => vec![Way::Mixed, Way::ListThenFollow],
                };
                for way in ways {
                    seed = seed.wrapping_add(1);
                    let reader =
                        Reader::start(&self.clients, stream.clone(), &table.key, way, seed, &self.shared);
                    self.readers.push((i, scope, reader));
                }
            }
        }
    }

    /// Lets all trouble loose, until it is quiet.
    pub fn make_trouble(&mut self) {
        let trouble = Arc::new(Trouble {
            world: self.world.clone(),
            tables: self.tables.clone(),
            servers: self.servers.clone(),
            journal: self.shared.journal.clone(),
            stop: self.stop.0.clone(),
            pause: self.pace.trouble,
            calm: Mutex::new(()),
        });
        self.work.push(tokio::spawn(trouble.clone().of_the_database(self.seed.wrapping_add(2_000))));
        self.work.push(tokio::spawn(trouble.of_the_servers(self.seed.wrapping_add(3_000))));
    }

    /// Ends writers and trouble.
    pub async fn quiet(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        for work in self.work.drain(..) {
            if let Err(failed) = work.await {
                self.shared.journal.fault(format!("a writer or a troublemaker failed: {failed}"));
            }
        }
        tokio::task::block_in_place(|| {
            self.world.heal();
            self.servers.iter().for_each(|server| server.front.heal());
        });
        for server in &self.servers {
            server.watch(&self.shared.journal).await;
        }
    }

    /// Works on after [`Scene::quiet`].
    pub fn go_on(&mut self, round: u64) {
        self.seed = self.seed.wrapping_add(round.wrapping_mul(1_000_003));
        self.stop = Stop(Arc::new(AtomicBool::new(false)));
        self.write();
        self.write_over_rest();
        self.make_trouble();
    }

    /// Waits until everybody has what the tables have; gives the stories of those that have not.
    pub async fn differences(&self) -> Vec<String> {
        let deadline = Instant::now() + AGREEMENT;
        loop {
            if self.look(false).await.is_empty() {
                return vec![];
            }
            if Instant::now() >= deadline {
                return self.look(true).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn look(&self, tell: bool) -> Vec<String> {
        let mut stories = vec![];
        for (i, table) in self.tables.iter().enumerate() {
            let held = tokio::task::block_in_place(|| self.world.rows(table));
            for (server, client) in self.clients.iter().enumerate() {
                match list(client, table).await {
                    Err(reason) => stories.push(format!("server {server}: {reason}")),
                    Ok(listed) => stories.extend(difference::<W>(&held, &listed).map(|difference| {
                        story(&*self.world, table, &difference, None, &self.shared.journal)
                    })),
                }
            }
            for (_, scope, reader) in self.readers.iter().filter(|(place, ..)| *place == i) {
                let part = part(&held, *scope);
                let found = difference::<W>(&part, &reader.state.lock().unwrap().rows);
                // Telling a story asks the database.
                stories.extend(found.map(|difference| match tell {
                    true => story(&*self.world, table, &difference, Some(reader), &self.shared.journal),
                    false => difference.what,
                }));
            }
        }
        if tell && !stories.is_empty() {
            let more = stories.len().saturating_sub(STORIES);
            stories.truncate(STORIES);
            stories.push(format!("{more} more differences"));
            for client in &self.clients {
                stories.push(format!("/ready: {}", client.get("/ready").await.text()));
            }
            stories.push(format!("the database: {}", tokio::task::block_in_place(|| self.world.doing())));
            for server in &self.servers {
                let log = server.process.lock().await.recent_log();
                let from = log.ceil_char_boundary(log.len().saturating_sub(8_000));
                stories.push(format!("the end of a server's log:\n{}", &log[from..]));
            }
        }
        stories
    }

    /// Checks everything and ends the readers; gives what is wrong.
    pub async fn end(self) -> Vec<String> {
        let mut faults = self.differences().await;
        self.shared.stop.store(true, Ordering::Relaxed);
        for (_, _, reader) in self.readers {
            reader.finish().await;
        }
        faults.extend(tokio::task::block_in_place(|| self.world.unsound()));
        let mut all = self.shared.journal.faults();
        all.extend(faults);
        all
    }
}
