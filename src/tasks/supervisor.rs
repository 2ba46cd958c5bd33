//! The supervisor of the background: every task and thread that works for as long as the server runs reports to it. One
//! that panics, or ends before the server does, is a failure: `/ready` says so, and the server stops gracefully and
//! exits with a message, so that the process manager starts it again with everything in place. The supervisor is
//! independent of the data.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::sync::watch;

/// A background task that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the background task `{task}` {}", if *.panicked { "panicked" } else { "ended unexpectedly" })]
pub struct TaskFailure {
    /// Its name.
    pub task: &'static str,
    /// It panicked; otherwise it returned.
    pub panicked: bool,
}

/// Watches over the background tasks of one server; clones share it.
#[derive(Debug, Clone)]
pub struct Supervisor {
    shared: Arc<SupervisorState>,
}

#[derive(Debug)]
struct SupervisorState {
    /// The first failure; what follows is mostly its consequence.
    failure: watch::Sender<Option<TaskFailure>>,
    /// The server is stopping: tasks may end.
    stopping: AtomicBool,
}

impl Default for Supervisor {
    fn default() -> Supervisor {
        let shared = SupervisorState { failure: watch::Sender::new(None), stopping: AtomicBool::new(false) };
        Supervisor { shared: Arc::new(shared) }
    }
}

impl Supervisor {
    /// Supervises a task that must go on until the server stops.
    pub fn watch<F: Future<Output = ()>>(&self, name: &'static str, task: F) -> Watched<F> {
        Watched { task, name, may_end: false, supervisor: self.clone() }
    }

    /// Supervises a task that may end at any time, but must not panic.
    pub fn guard<F: Future<Output = ()>>(&self, name: &'static str, task: F) -> Watched<F> {
        Watched { task, name, may_end: true, supervisor: self.clone() }
    }

    /// Starts a thread that must go on until the server stops.
    ///
    /// # Errors
    /// When the system cannot start one.
    pub fn thread(&self, name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let supervisor = self.clone();
        let watched = move || {
            let on_panic = OnPanic { name, supervisor: &supervisor };
            run();
            drop(on_panic);
            supervisor.ended(name);
        };
        std::thread::Builder::new().name(name.into()).spawn(watched).map(|_| ())
    }

    /// The server is stopping: from here on tasks may end.
    pub fn stopping(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// The first failure, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<TaskFailure> {
        *self.shared.failure.borrow()
    }

    /// Waits for a failure.
    pub async fn failed(&self) -> TaskFailure {
        let mut failures = self.shared.failure.subscribe();
        loop {
            if let Some(failure) = *failures.borrow_and_update() {
                return failure;
            }
            if failures.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn ended(&self, task: &'static str) {
        if !self.shared.stopping.load(Ordering::Acquire) {
            self.fail(TaskFailure { task, panicked: false });
        }
    }

    fn fail(&self, failure: TaskFailure) {
        tracing::error!(task = failure.task, panicked = failure.panicked, "a background task failed");
        self.shared.failure.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(failure);
            first
        });
    }
}

/// Reports a panic that unwinds past it.
struct OnPanic<'a> {
    name: &'static str,
    supervisor: &'a Supervisor,
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.supervisor.fail(TaskFailure { task: self.name, panicked: true });
        }
    }
}

pin_project_lite::pin_project! {
    /// A task under supervision. Dropping it before its end is no failure.
    pub struct Watched<F> {
        #[pin]
        task: F,
        name: &'static str,
        may_end: bool,
        supervisor: Supervisor,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let _on_panic = OnPanic { name: this.name, supervisor: this.supervisor };
        let polled = poll_task(this.name, this.task, cx);
        if polled.is_ready() && !*this.may_end {
            this.supervisor.ended(this.name);
        }
        polled
    }
}

fn poll_task<F: Future<Output = ()>>(_name: &str, task: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<()> {
    crate::failpoint!(_name, |_| Poll::Ready(()));
    task.poll(cx)
}

/// A place at which a test can make the server fail, by the name of the place and the variable `FAILPOINTS`. It is nothing
/// at all in a build without the feature `failpoints`.
#[macro_export]
macro_rules! failpoint {
    ($($argument:tt)*) => {
        #[cfg(feature = "failpoints")]
        fail::fail_point!($($argument)*);
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_a_failure() {
        for panics in [false, true] {
            let supervisor = Supervisor::default();
            let task = async move { assert!(!panics, "as it was asked to") };
            let _ = tokio::spawn(supervisor.watch("task", task)).await;
            assert_eq!(supervisor.failed().await, TaskFailure { task: "task", panicked: panics });
        }
    }

    #[tokio::test]
    async fn a_thread_that_ends_or_panics_is_a_failure() {
        for panics in [false, true] {
            let supervisor = Supervisor::default();
            supervisor.thread("thread", move || assert!(!panics, "as it was asked to")).unwrap();
            assert_eq!(supervisor.failed().await, TaskFailure { task: "thread", panicked: panics });
        }
    }

    #[tokio::test]
    async fn tasks_may_end_when_the_server_stops_and_may_be_dropped_at_any_time() {
        let supervisor = Supervisor::default();
        tokio::spawn(supervisor.guard("short", async {})).await.unwrap();
        let dropped = tokio::spawn(supervisor.watch("dropped", std::future::pending()));
        tokio::task::yield_now().await;
        dropped.abort();
        let _ = dropped.await;
        supervisor.stopping();
        tokio::spawn(supervisor.watch("last", async {})).await.unwrap();
        assert_eq!(supervisor.failure(), None);
    }
}
