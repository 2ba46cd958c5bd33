//! The small file beside the database, `bourn.db-bourn`. It holds what must not be written into the application's file:
//!
//! - **Marks**: where transactions of other processes end. They are written here because numbering those transactions in the
//!   database itself would be a commit, which fails every deferred transaction that has read before it and writes after
//!   it. A mark is on the disk before anything up to it is served, so every server of the file, also after a crash, gives the
//!   same numbers. The [`sequencer`](crate::databases::sqlite::file::sequencer) folds marks into the database later.
//! - **The witness**: the log as it was last served. A database that does not agree with it is not the one that was served;
//!   see [`history`](super::history). It is written after each commit that is published, without syncing it: after a
//!   loss of power it may be older than the log, never newer than what was committed.
//!
//! Several servers share the file. Marks are added and removed and the witness is written under a lock on it, and a server
//! that takes that lock reads the marks again; the lock is never held while waiting for the database's.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bourn_protocol::{Epoch, Seq};
use sha2::{Digest, Sha256};

/// What the file begins with: its kind and the version of its layout.
const MAGIC: &[u8; 8] = b"bourn 1\n";
/// The length of the witness; it fits into one sector, so that it is written whole.
const WITNESS_BYTES: usize = 56;
/// Where the marks begin.
const MARKS_AT: u64 = 512;
const MARK_BYTES: usize = 24;
/// By how much the file grows at a time: a write that does not make it longer is on the disk sooner.
const GROWTH_BYTES: usize = 16 << 10;
/// How long another server may hold the lock before marking is given up for now.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_micros(200);
/// How often an incomplete witness is read again.
const WITNESS_READS: usize = 3;

/// The log as it was last served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Witness {
    pub(in super::super) epoch: Epoch,
    /// The database's file.
    pub(in super::super) inode: u64,
    /// The last activity that was served, and its fingerprint.
    pub(in super::super) seq: Seq,
    pub(in super::super) fingerprint: u64,
    /// How many commits had touched stored streams.
    pub(in super::super) streams: i64,
}

/// One transaction of another process, or several that were seen together: the activities after `from`, up to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct TransactionMark {
    pub(in super::super) from: Seq,
    pub(in super::super) to: Seq,
}

/// The marks that are not folded into the database yet, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in super::super) struct Marks(pub(in super::super) Vec<TransactionMark>);

impl Marks {
    /// The seq up to which they reach.
    pub(in super::super) fn end(&self) -> Seq {
        self.0.last().map(|mark| mark.to).unwrap_or_default()
    }

    /// The mark that an activity falls under.
    pub(in super::super) fn of(&self, seq: Seq) -> Option<TransactionMark> {
        let at = self.0.partition_point(|mark| mark.to < seq);
        self.0.get(at).copied().filter(|mark| mark.from < seq)
    }
}

/// The file beside a database, shared by the threads of this process.
#[derive(Debug)]
pub(in super::super) struct Beside {
    path: PathBuf,
    file: Mutex<Option<File>>,
    /// The marks as last read; never ahead of what is on the disk.
    marks: ArcSwap<Marks>,
    /// Marks up to this seq are known to be in the database.
    folded: AtomicU64,
}

/// The file, locked: no other server or thread adds or removes marks.
pub(in super::super) struct Locked<'a> {
    beside: &'a Beside,
    file: MutexGuard<'a, Option<File>>,
    epoch: Epoch,
}

impl Beside {
    /// The file beside this database. It is opened when it is first needed.
    pub(in super::super) fn of(database: &Path) -> Beside {
        let mut path = database.as_os_str().to_owned();
        path.push("-bourn");
        Beside {
            path: path.into(),
            file: Mutex::default(),
            marks: ArcSwap::default(),
            folded: AtomicU64::new(0),
        }
    }

    /// The marks as this process knows them. A snapshot of the database that begins after this call agrees with them: a
    /// mark is removed only after it is folded.
    pub(in super::super) fn marks(&self) -> Arc<Marks> {
        self.marks.load_full()
    }

    /// How far marks are known to be folded into the database.
    pub(in super::super) fn folded(&self) -> Seq {
        Seq::new(self.folded.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Notes that marks are folded into the database up to this seq.
    pub(in super::super) fn set_folded(&self, seq: Seq) {
        self.folded.store(seq.get(), Ordering::Release);
    }

    /// How many activities wait to be folded.
    pub(in super::super) fn unfolded(&self) -> u64 {
        let folded = self.folded();
        self.marks().0.iter().map(|mark| mark.to.get().saturating_sub(mark.from.max(folded).get())).sum()
    }

    /// The last witness; `None` where it is missing or incomplete.
    pub(in super::super) fn witness(&self) -> io::Result<Option<Witness>> {
        let mut file = self.hold();
        let file = match open(&self.path, &mut file, false) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut found = read_witness(file)?;
        // Another server may be writing it at this moment.
        for _ in 0..WITNESS_READS {
            if found.is_some() {
                break;
            }
            std::thread::park_timeout(LOCK_RETRY);
            found = read_witness(file)?;
        }
        Ok(found)
    }

    /// Replaces the witness.
    pub(in super::super) fn replace(&self, witness: &Witness) -> io::Result<()> {
        let mut file = self.hold();
        let file = open(&self.path, &mut file, true)?;
        lock(file)?;
        let written = file.write_all_at(&encode(witness), 0);
        file.unlock()?;
        written
    }

    /// Moves the witness on. One of another epoch or further on is another server's, and stays. While another server
    /// holds the lock nothing is written: a later call does.
    pub(in super::super) fn advance(&self, witness: &Witness) -> io::Result<()> {
        let mut file = self.hold();
        let file = open(&self.path, &mut file, true)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let advanced = read_witness(file).and_then(|there| {
            let newer = there.is_some_and(|there| {
                there.epoch != witness.epoch || (there.seq > witness.seq && there.streams >= witness.streams)
            });
            if newer { Ok(()) } else { file.write_all_at(&encode(witness), 0) }
        });
        file.unlock()?;
        advanced
    }

    /// Begins with a log, or with a new epoch of it.
    pub(in super::super) fn begin(&self, epoch: Epoch) -> io::Result<()> {
        let _locked = self.lock(epoch)?;
        self.set_folded(Seq::ZERO);
        Ok(())
    }

    /// Takes the lock and reads the marks again.
    pub(in super::super) fn lock(&self, epoch: Epoch) -> io::Result<Locked<'_>> {
        let mut file = self.hold();
        let handle = open(&self.path, &mut file, true)?;
        lock(handle)?;
        let marks = read_marks(handle, epoch, &self.marks.load());
        let locked = Locked { beside: self, file, epoch };
        locked.publish(marks?);
        Ok(locked)
    }

    /// Closes the file: there may be another one at its path now.
    pub(in super::super) fn reopen(&self) {
        *self.hold() = None;
        self.set_folded(Seq::ZERO);
        self.marks.store(Arc::default());
    }

    fn hold(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locked<'_> {
    /// The marks as the file has them.
    pub(in super::super) fn marks(&self) -> Arc<Marks> {
        self.beside.marks()
    }

    /// Adds a mark behind the others; it is on the disk when this returns.
    pub(in super::super) fn add(&self, mark: TransactionMark) -> io::Result<()> {
        let mut marks = Marks::clone(&self.marks());
        let index = marks.0.len();
        let length = self.file()?.metadata()?.len().max(MARKS_AT);
        if place_of(index + 1) > length {
            self.file()?.write_all_at(&vec![0; GROWTH_BYTES], length)?;
        }
        self.file()?.write_all_at(&encode_mark(self.epoch, index as u64, mark), place_of(index))?;
        self.file()?.sync_data()?;
        marks.0.push(mark);
        self.publish(marks);
        Ok(())
    }

    /// Removes all marks, once they are folded into the database or belong to no epoch any more.
    pub(in super::super) fn clear(&self) -> io::Result<()> {
        let length = self.file()?.metadata()?.len();
        if length > MARKS_AT + GROWTH_BYTES as u64 {
            self.file()?.set_len(MARKS_AT + GROWTH_BYTES as u64)?;
        }
        if length > MARKS_AT {
            let used = usize::try_from(length - MARKS_AT).unwrap_or(GROWTH_BYTES).min(GROWTH_BYTES);
            self.file()?.write_all_at(&vec![0; used], MARKS_AT)?;
        }
        self.publish(Marks::default());
        self.beside.set_folded(Seq::ZERO);
        Ok(())
    }

    fn publish(&self, marks: Marks) {
        if *self.beside.marks.load_full() != marks {
            self.beside.marks.store(Arc::new(marks));
        }
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_ref() {
            // It cannot fail on a lock that is held; if it did, it would end with the process.
            let _ = file.unlock();
        }
    }
}

/// Takes the file's lock.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::park_timeout(LOCK_RETRY);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The open file; opened if it is not yet, and made if `make`.
fn open<'a>(path: &Path, file: &'a mut Option<File>, make: bool) -> io::Result<&'a File> {
    let there = match file.take() {
        Some(there) => there,
        None => OpenOptions::new().read(true).write(true).create(make).truncate(false).open(path).or_else(
            |error| match error.kind() {
                // A file that cannot be written can still be read.
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => File::open(path),
                _ => Err(error),
            },
        )?,
    };
    Ok(file.insert(there))
}

fn digest(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(first)
}

fn encode(witness: &Witness) -> [u8; WITNESS_BYTES] {
    let mut bytes = [0; WITNESS_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(witness.epoch.as_str().as_bytes());
    let numbers = [witness.inode, witness.seq.get(), witness.fingerprint, witness.streams.cast_unsigned()];
    for (i, number) in numbers.into_iter().enumerate() {
        bytes[16 + i * 8..24 + i * 8].copy_from_slice(&number.to_le_bytes());
    }
    let check = digest(&[&bytes[..48]]);
    bytes[48..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn read_witness(file: &File) -> io::Result<Option<Witness>> {
    let mut bytes = [0; WITNESS_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(decode(&bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn decode(bytes: &[u8; WITNESS_BYTES]) -> Option<Witness> {
    if &bytes[..8] != MAGIC || number(bytes, 48)? != digest(&[&bytes[..48]]) {
        return None;
    }
    Some(Witness {
        epoch: std::str::from_utf8(&bytes[8..12]).ok()?.parse().ok()?,
        inode: number(bytes, 16)?,
        seq: Seq::new(number(bytes, 24)?)?,
        fingerprint: number(bytes, 32)?,
        streams: number(bytes, 40)?.cast_signed(),
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Where a mark is in the file.
fn place_of(index: usize) -> u64 {
    MARKS_AT + (index * MARK_BYTES) as u64
}

fn encode_mark(epoch: Epoch, index: u64, mark: TransactionMark) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&mark.from.get().to_le_bytes());
    bytes[8..16].copy_from_slice(&mark.to.get().to_le_bytes());
    let check = digest(&[epoch.as_str().as_bytes(), &index.to_le_bytes(), &bytes[..16]]);
    bytes[16..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// The marks of this epoch, up to the first incomplete one. The known marks are not read again where the last of them
/// is still in its place: seqs only grow, so no other marks can lie before it.
fn read_marks(file: &File, epoch: Epoch, known: &Marks) -> io::Result<Marks> {
    let count = known.0.len();
    let mut marks: Vec<TransactionMark> = Vec::new();
    let mut last = [0; MARK_BYTES];
    if let Some(mark) = known.0.last()
        && file.read_exact_at(&mut last, place_of(count - 1)).is_ok()
        && last == encode_mark(epoch, (count - 1) as u64, *mark)
    {
        marks.clone_from(&known.0);
    }
    let from = place_of(marks.len());
    let length = usize::try_from(file.metadata()?.len().saturating_sub(from)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length - length % MARK_BYTES];
    file.read_exact_at(&mut bytes, from)?;
    for (index, bytes) in (marks.len() as u64..).zip(bytes.chunks_exact(MARK_BYTES)) {
        let place = |at| number(bytes, at).and_then(Seq::new);
        let (Some(from), Some(to)) = (place(0), place(8)) else { break };
        let mark = TransactionMark { from, to };
        if encode_mark(epoch, index, mark) != bytes || marks.last().is_some_and(|last| last.to > from) {
            break;
        }
        marks.push(mark);
    }
    Ok(Marks(marks))
}

/// A file whose name is the database's with something appended.
pub(in super::super) fn beside_path(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).unwrap()
    }

    fn mark(from: u64, to: u64) -> TransactionMark {
        TransactionMark { from: seq(from), to: seq(to) }
    }

    #[test]
    fn marks_are_shared_outlive_the_process_and_belong_to_one_log() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("a.db");
        let (epoch, other) = ("abcd".parse().unwrap(), "wxyz".parse().unwrap());
        let (one, two) = (Beside::of(&database), Beside::of(&database));
        one.lock(epoch).unwrap().add(mark(3, 5)).unwrap();
        let locked = two.lock(epoch).unwrap();
        locked.add(mark(7, 9)).unwrap();
        drop(locked);
        assert_eq!(one.marks().0, [mark(3, 5)]);
        assert_eq!(one.lock(epoch).unwrap().marks().0, [mark(3, 5), mark(7, 9)]);
        assert_eq!(one.marks().of(seq(8)), Some(mark(7, 9)));
        assert_eq!(one.marks().of(seq(6)), None, "it has its number in the database");
        assert_eq!(one.marks().of(seq(10)), None);
        assert!(two.lock(other).unwrap().marks().0.is_empty());
        // A mark that was cut off by a crash does not count, nor does what follows it.
        let file = OpenOptions::new().write(true).open(directory.path().join("a.db-bourn")).unwrap();
        file.write_all_at(&[0xff; 4], MARKS_AT + 24).unwrap();
        assert_eq!(two.lock(epoch).unwrap().marks().0, [mark(3, 5)]);
    }

    #[test]
    fn a_witness_is_read_back_and_moves_on_only_within_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let beside = Beside::of(&directory.path().join("a.db"));
        assert_eq!(beside.witness().unwrap(), None);
        let at = |epoch: &str, n: u64| Witness {
            epoch: epoch.parse().unwrap(),
            inode: 7,
            seq: seq(n),
            fingerprint: n * 31,
            streams: 0,
        };
        beside.replace(&at("aaaa", 5)).unwrap();
        beside.advance(&at("aaaa", 9)).unwrap();
        beside.advance(&at("aaaa", 8)).unwrap();
        beside.advance(&at("bbbb", 20)).unwrap();
        assert_eq!(beside.witness().unwrap(), Some(at("aaaa", 9)));
        beside.replace(&at("bbbb", 1)).unwrap();
        assert_eq!(beside.witness().unwrap(), Some(at("bbbb", 1)));
        let file = OpenOptions::new().write(true).open(directory.path().join("a.db-bourn")).unwrap();
        file.write_all_at(b"?", 20).unwrap();
        assert_eq!(beside.witness().unwrap(), None);
    }
}
