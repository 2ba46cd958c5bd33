//! File events: another process's commit appends to the write-ahead log, and the system reports that. The directory is
//! watched, too, for files that come and go. Where the system has no such events, or has no more to give, looking every
//! few milliseconds stands in for them. The events are read from inotify itself: the crate `notify` has a thread of its own
//! between an event and the thread that waits for it, on the way of every commit to its readers.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::beside::beside_path;

/// How often the file is looked at where the system reports no events.
const WITHOUT_EVENTS: Duration = Duration::from_millis(5);

/// Stops the waiting when it is dropped.
pub(in super::super) struct StopOnDrop {
    _held: UnixStream,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum WaitResult {
    /// Something happened to the files.
    Event,
    /// Nothing happened in that time.
    Nothing,
    /// The watcher has to stop.
    Stopped,
}

/// The events of one database's files.
pub(in super::super) struct Events {
    path: PathBuf,
    stop: UnixStream,
    #[cfg(target_os = "linux")]
    inotify: Option<nix::sys::inotify::Inotify>,
    #[cfg(target_os = "linux")]
    log: Option<nix::sys::inotify::WatchDescriptor>,
}

impl Events {
    /// The events of the database at this path.
    pub(in super::super) fn new(path: &Path) -> io::Result<(StopOnDrop, Events)> {
        let (held, stop) = UnixStream::pair()?;
        let mut events = Events {
            path: path.to_owned(),
            stop,
            #[cfg(target_os = "linux")]
            inotify: None,
            #[cfg(target_os = "linux")]
            log: None,
        };
        events.watch();
        Ok((StopOnDrop { _held: held }, events))
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::{AsFd, Duration, Events, WITHOUT_EVENTS, WaitResult, beside_path};

    impl Events {
        /// Watches the files that are there now. To watch the same file twice is one watch.
        pub(crate) fn watch(&mut self) {
            if self.inotify.is_none() {
                self.inotify = match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
                    Ok(inotify) => Some(inotify),
                    Err(error) => {
                        tracing::warn!(%error, "no file events; the file is looked at every few milliseconds");
                        None
                    }
                };
            }
            let Some(inotify) = &self.inotify else { return };
            let named = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_MOVED_TO;
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let watched = inotify.add_watch(directory.unwrap_or(".".as_ref()), named);
            let content = AddWatchFlags::IN_MODIFY;
            // A file that is missing is watched when it is made.
            let _ = inotify.add_watch(&self.path, content);
            let log = inotify.add_watch(&beside_path(&self.path, "-wal"), content);
            self.log = log.ok();
            if let Err(error) = watched {
                tracing::warn!(%error, "no file events; the file is looked at every few milliseconds");
                self.inotify = None;
            }
        }

        /// Waits for an event, `patience` at most.
        pub(crate) fn wait(&mut self, patience: Duration) -> WaitResult {
            // Without a watch on the write-ahead log no event reports a commit.
            let blind = self.inotify.is_none() || self.log.is_none();
            let patience = if blind { patience.min(WITHOUT_EVENTS) } else { patience };
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
            let stop = PollFd::new(self.stop.as_fd(), PollFlags::POLLIN);
            let polled = match &self.inotify {
                Some(inotify) => {
                    let mut files = [stop, PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                    let polled = poll(&mut files, timeout);
                    polled.map(|_| (files[0].any(), files[1].any()))
                }
                None => {
                    let mut files = [stop];
                    let polled = poll(&mut files, timeout);
                    polled.map(|_| (files[0].any(), None))
                }
            };
            match polled {
                Ok((Some(true), _)) => return WaitResult::Stopped,
                Ok((_, Some(true))) => {}
                Ok(_) | Err(Errno::EINTR) => {
                    if blind {
                        self.watch();
                    }
                    return WaitResult::Nothing;
                }
                Err(error) => {
                    tracing::warn!(%error, "waiting for file events failed");
                    std::thread::park_timeout(patience);
                    return WaitResult::Nothing;
                }
            }
            let Some(inotify) = &self.inotify else { return WaitResult::Nothing };
            let mut renamed = false;
            while let Ok(events) = inotify.read_events() {
                renamed |= events.iter().any(|event| !event.mask.contains(AddWatchFlags::IN_MODIFY));
            }
            if renamed {
                self.watch();
            }
            WaitResult::Event
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Events {
    pub(in super::super) fn watch(&mut self) {}

    /// Waits, `patience` at most.
    pub(in super::super) fn wait(&mut self, patience: Duration) -> WaitResult {
        use std::io::Read;
        let patience = patience.min(WITHOUT_EVENTS);
        let waited = self.stop.set_read_timeout(Some(patience)).and_then(|()| self.stop.read(&mut [0]));
        if waited.is_ok() { WaitResult::Stopped } else { WaitResult::Nothing }
    }
}
