//! Stored streams: whatever is created, appended, forked and deleted, in whatever order, what is read is what was
//! acknowledged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bourn::streams::{
    AppendError, AppendStream, Appended, CreateError, CreateStream, Created, FindError, Fork, Producer,
    StoredSubscription, StreamInfo,
};
use bourn_protocol::stored::chunk::StoredChunkBuilder;
use bourn_protocol::stored::{Form, Lifetime, Payload};
use bourn_protocol::{ContentType, Seq, StreamOffset, StreamPath};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use crate::backend::Backend;

const RUNS: usize = 12;
const STEPS: usize = 60;
/// So small that most reads take several chunks.
const CHUNK: usize = 64;

fn path(text: &str) -> StreamPath {
    StreamPath::new(text).unwrap()
}

fn text() -> ContentType {
    ContentType::new("text/plain").unwrap()
}

async fn create<B: Backend>(backend: &B, at: &str, lifetime: Lifetime) -> Created {
    let create = CreateStream {
        path: path(at),
        content_type: Some(text()),
        lifetime,
        closed: false,
        fork: None,
        body: Bytes::new(),
    };
    backend.storage().create_stream(create).await.unwrap()
}

async fn fork<B: Backend>(
    backend: &B,
    from: &str,
    to: &str,
    offset: Option<StreamOffset>,
    sub: u64,
) -> Result<Created, CreateError> {
    let create = CreateStream {
        path: path(to),
        content_type: None,
        lifetime: Lifetime::Endless,
        closed: false,
        fork: Some(Fork { source: path(from), offset, sub }),
        body: Bytes::new(),
    };
    backend.storage().create_stream(create).await
}

async fn append<B: Backend>(
    backend: &B,
    to: &str,
    data: &str,
    producer: Option<Producer>,
) -> Result<Appended, AppendError> {
    let payload = Payload::take(Form::Text, Bytes::copy_from_slice(data.as_bytes())).unwrap();
    let append = AppendStream {
        path: path(to),
        content_type: Some(text()),
        payload,
        close: false,
        seq: None,
        producer,
    };
    backend.storage().append(append).await
}

/// All of a stream after a place, chunk by chunk.
async fn read<B: Backend>(backend: &B, stream: &StreamInfo, from: Seq) -> String {
    let (mut read, mut position) = (Vec::new(), from);
    loop {
        let builder = StoredChunkBuilder::new(Form::Text, position, CHUNK);
        let (builder, _) = backend.storage().fill_stream(stream, builder).await.unwrap();
        let chunk = builder.finish();
        read.extend(chunk.body);
        position = chunk.next;
        if !chunk.sealed {
            return String::from_utf8(read).unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Append(u8, String),
    Fork { from: u8, to: u8, at: prop::sample::Index, sub: u8 },
    Delete(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6_u8).prop_map(Step::Create),
        8 => (0..6_u8, "[a-z]{1,40}").prop_map(|(to, data)| Step::Append(to, data)),
        // Some that do not fit into a page of a database.
        1 => (0..6_u8, "[a-z]{10,40}").prop_map(|(to, data)| Step::Append(to, data.repeat(200))),
        5 => (0..6_u8, 0..6_u8, any::<prop::sample::Index>(), 0..4_u8)
            .prop_map(|(from, to, at, sub)| Step::Fork { from, to, at, sub }),
        4 => (0..6_u8).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    There,
    Kept,
    Gone,
}

/// A stream as it should be.
#[derive(Debug, Clone)]
struct Model {
    data: String,
    /// The ends of appends, with the tokens that were given for them.
    ends: Vec<(usize, StreamOffset)>,
    source: Option<usize>,
    state: State,
}

#[derive(Default)]
struct World {
    streams: Vec<Model>,
    paths: BTreeMap<String, usize>,
}

impl World {
    fn at(&self, path: &str) -> Option<(usize, State)> {
        let &id = self.paths.get(path)?;
        Some((id, self.streams[id].state)).filter(|(_, state)| *state != State::Gone)
    }

    fn has_forks(&self, id: usize) -> bool {
        self.streams.iter().any(|stream| stream.source == Some(id) && stream.state != State::Gone)
    }

    fn delete(&mut self, id: usize) {
        if self.has_forks(id) {
            self.streams[id].state = State::Kept;
            return;
        }
        let mut next = Some(id);
        while let Some(id) = next {
            self.streams[id].state = State::Gone;
            next = self.streams[id]
                .source
                .filter(|&source| self.streams[source].state == State::Kept && !self.has_forks(source));
        }
    }
}

pub async fn what_is_appended_is_read_back_whatever_was_forked_and_deleted<B: Backend>() {
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..RUNS {
        let steps = prop::collection::vec(step(), STEPS).new_tree(&mut runner).unwrap().current();
        let mut backend = B::open(&[]).await;
        let mut world = World::default();
        for step in &steps {
            if matches!(step, Step::Reopen) {
                backend = backend.reopen("").await;
            } else {
                do_step(&backend, &mut world, step).await;
            }
        }
        for (at, &id) in &world.paths {
            let model = &world.streams[id];
            match (backend.storage().find_stream(&path(at)).await, model.state) {
                (Err(FindError::Missing), State::Gone) | (Err(FindError::Gone), State::Kept) => {}
                (Ok(stream), State::There) => {
                    for &(end, token) in &model.ends {
                        let position = Seq::new(end as u64).unwrap();
                        assert_eq!(stream.offset(position), token, "tokens are lasting: {steps:?}");
                        assert_eq!(read(&backend, &stream, position).await, model.data[end..], "{steps:?}");
                    }
                }
                (found, state) => panic!("{at} is {found:?}, not {state:?}: {steps:?}"),
            }
        }
    }
}

async fn do_step<B: Backend>(backend: &B, world: &mut World, step: &Step) {
    let name = |n: &u8| format!("s/{n}");
    match step {
        Step::Create(n) => {
            let at = name(n);
            if world.at(&at).is_none() {
                assert!(create(backend, &at, Lifetime::Endless).await.new);
                let ends = vec![(0, StreamOffset::START)];
                world.streams.push(Model { data: String::new(), ends, source: None, state: State::There });
                world.paths.insert(at, world.streams.len() - 1);
            }
        }
        Step::Append(n, data) => {
            let at = name(n);
            let result = append(backend, &at, data, None).await;
            match world.at(&at) {
                None => assert_eq!(result, Err(AppendError::Missing)),
                Some((_, State::Kept)) => assert_eq!(result, Err(AppendError::Gone)),
                Some((id, _)) => {
                    let model = &mut world.streams[id];
                    model.data += data;
                    model.ends.push((model.data.len(), result.unwrap().tail));
                }
            }
        }
        Step::Fork { from, to, at, sub } => {
            let (from, to) = (name(from), name(to));
            let Some((id, State::There)) = world.at(&from) else { return };
            if world.at(&to).is_some() {
                return;
            }
            let source = world.streams[id].clone();
            let at = at.index(source.ends.len());
            let (base, token) = source.ends[at];
            let next = source.ends.get(at + 1).map_or(base, |(end, _)| *end);
            let end = base + usize::from(*sub);
            let result = fork(backend, &from, &to, Some(token), u64::from(*sub)).await;
            if end > next {
                assert!(matches!(result, Err(CreateError::ForkOffset(_))), "{result:?}");
                return;
            }
            let stream = result.unwrap().stream;
            let mut ends = source.ends[..=at].to_vec();
            if end > base {
                ends.push((end, stream.offset(stream.tail)));
            }
            let data = source.data[..end].to_owned();
            world.streams.push(Model { data, ends, source: Some(id), state: State::There });
            world.paths.insert(to, world.streams.len() - 1);
        }
        Step::Delete(n) => {
            let at = name(n);
            let result = backend.storage().delete_stream(&path(&at)).await;
            match world.at(&at) {
                None => assert_eq!(result, Err(FindError::Missing)),
                Some((_, State::Kept)) => assert_eq!(result, Err(FindError::Gone)),
                Some((id, _)) => {
                    result.unwrap();
                    world.delete(id);
                }
            }
        }
        Step::Reopen => {}
    }
}

pub async fn concurrent_appends_are_in_one_order_and_none_is_lost<B: Backend>() {
    let backend = B::open(&[]).await;
    create(&backend, "s", Lifetime::Endless).await;
    let appends = (0..200).map(|i| {
        let backend = &backend;
        async move { append(backend, "s", &format!("{i:03}."), None).await.unwrap().tail }
    });
    let mut tails = join_all(appends).await;
    tails.sort_by_key(ToString::to_string);
    tails.dedup();
    assert_eq!(tails.len(), 200, "each has a place of its own");
    let stream = backend.storage().find_stream(&path("s")).await.unwrap();
    let all = read(&backend, &stream, Seq::ZERO).await;
    let mut parts: Vec<&str> = all.split_terminator('.').collect();
    parts.sort_unstable();
    assert_eq!(parts, (0..200).map(|i| format!("{i:03}")).collect::<Vec<_>>());
}

/// Polls all of them at once.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, done) in &mut waiting {
            if done.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(output) => *done = Some(output),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    waiting.into_iter().map(|(_, done)| done.unwrap()).collect()
}

pub async fn a_repeated_append_is_done_once_also_after_a_restart<B: Backend>() {
    let mut backend = B::open(&[]).await;
    create(&backend, "s", Lifetime::Endless).await;
    let producer = |epoch, seq| Some(Producer { id: "p".into(), epoch, seq });
    let first = append(&backend, "s", "a", producer(0, 0)).await.unwrap();
    append(&backend, "s", "b", producer(0, 1)).await.unwrap();
    backend = backend.reopen("").await;
    let again = append(&backend, "s", "a", producer(0, 0)).await.unwrap();
    assert!(!first.duplicate && again.duplicate && again.producer_seq == Some(1));
    let gap = append(&backend, "s", "d", producer(0, 3)).await;
    assert_eq!(gap, Err(AppendError::Gap { expected: 2, received: 3 }));
    assert_eq!(append(&backend, "s", "c", producer(1, 1)).await, Err(AppendError::EpochSeq));
    append(&backend, "s", "c", producer(1, 0)).await.unwrap();
    assert_eq!(append(&backend, "s", "x", producer(0, 2)).await, Err(AppendError::StaleEpoch(1)));
    let stream = backend.storage().find_stream(&path("s")).await.unwrap();
    assert_eq!(read(&backend, &stream, Seq::ZERO).await, "abc");
}

pub async fn an_idle_stream_expires_and_one_in_use_does_not<B: Backend>() {
    let backend = B::open(&[]).await;
    create(&backend, "idle", Lifetime::Idle(1)).await;
    create(&backend, "read", Lifetime::Idle(1)).await;
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let read = backend.storage().find_stream(&path("read")).await.expect("it is in use");
        backend.storage().touch_stream(&read);
        if backend.storage().find_stream(&path("idle")).await.is_err() {
            break;
        }
        assert!(Instant::now() < until, "the idle one never expires");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(append(&backend, "idle", "x", None).await, Err(AppendError::Missing));
    assert!(create(&backend, "idle", Lifetime::Endless).await.new);
}

pub async fn what_deleted_streams_leave_behind_is_removed<B: Backend>() {
    let backend = B::open(&[]).await;
    create(&backend, "s", Lifetime::Endless).await;
    let appends = (0..3_000).map(|_| append(&backend, "s", "data", None));
    assert!(join_all(appends).await.into_iter().all(|appended| appended.is_ok()));
    let large = "large".repeat(2_000);
    let appends = (0..20).map(|_| append(&backend, "s", &large, None));
    assert!(join_all(appends).await.into_iter().all(|appended| appended.is_ok()));
    fork(&backend, "s", "f", None, 0).await.unwrap();
    backend.storage().delete_stream(&path("s")).await.unwrap();
    let fork = backend.storage().find_stream(&path("f")).await.unwrap();
    assert_eq!(read(&backend, &fork, Seq::ZERO).await.len(), 212_000, "the fork needs it still");
    backend.storage().delete_stream(&path("f")).await.unwrap();
    for table in B::STREAM_TABLES {
        backend.eventually_empty(table).await;
    }
}

pub async fn a_subscription_is_changed_only_as_it_was_read<B: Backend>() {
    let backend = B::open(&[]).await;
    let storage = backend.storage();
    let of = |version, state: &str| StoredSubscription {
        id: "s".into(),
        version,
        due_at: Some(5),
        state: state.into(),
    };
    assert!(storage.save_subscription(of(0, "one")).await.unwrap());
    assert!(!storage.save_subscription(of(0, "again")).await.unwrap());
    assert!(storage.save_subscription(of(1, "two")).await.unwrap());
    assert!(!storage.save_subscription(of(1, "late")).await.unwrap());
    assert_eq!(storage.subscription("s").await.unwrap().unwrap().state, "two");
    assert_eq!(storage.next_due_subscription().await.unwrap(), Some(5));
    assert!(storage.due_subscriptions(4, 10).await.unwrap().is_empty());
    assert_eq!(storage.due_subscriptions(5, 10).await.unwrap().len(), 1);
    assert!(storage.delete_subscription("s").await.unwrap());
    assert!(!storage.save_subscription(of(2, "dead")).await.unwrap());
    let keys = |secrets: bourn::streams::Secrets| (secrets.webhook, secrets.token);
    assert!(keys(storage.secrets().await.unwrap()) == keys(storage.secrets().await.unwrap()));
}
