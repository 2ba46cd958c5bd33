//! How long the machine's disk takes to make four kilobytes durable: the floor under every durable write.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::measure::Latencies;

const PAGE: [u8; 4096] = [0x5a; 4096];
/// Syncs of each kind.
const ROUNDS: u32 = 300;

/// Times from a write to the end of its fdatasync.
pub(crate) struct Syncs {
    /// Over pages that the file has already.
    pub(crate) preallocated: Latencies,
    /// At the file's end, where its length is to be recorded too.
    pub(crate) growing: Latencies,
}

pub(crate) fn measure(dir: &Path) -> Result<Syncs> {
    let mut file = File::create(dir.join("preallocated"))?;
    for _ in 0..ROUNDS {
        file.write_all(&PAGE)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let preallocated = rounds(&mut file)?;
    let mut file = File::create(dir.join("growing"))?;
    file.sync_all()?;
    let growing = rounds(&mut file)?;
    Ok(Syncs { preallocated, growing })
}

fn rounds(file: &mut File) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        latencies.record(u64::try_from(begun.elapsed().as_nanos())?);
    }
    Ok(latencies)
}
