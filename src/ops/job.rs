//! A long operation in steps of the caller's size, for an event loop, a rate limit or a cancel button.
//!
//! ```text
//!   caller   step ------.             step ------.
//!                        \    stands still        \
//!   worker                ====report===|           ====report===| ...
//! ```
//!
//! The operation has a thread of its own, which runs only while a step waits for it: it stands still inside its report
//! of progress when the step's bytes are used up, with whatever it holds. A power cut there loses as little as one at
//! any other moment of the operation.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::options::{Progress, ProgressFn};

type Operation = Box<dyn FnOnce(ProgressFn<'_>) -> Result<()> + Send>;

/// An operation in steps. Dropping it cancels what is not done and waits for that.
#[derive(Debug)]
pub struct Job {
    operation: Mutex<Start>,
    control: Arc<JobControl>,
}

enum Start {
    Not(Operation),
    Running(JoinHandle<()>),
    Over,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Start::Not(_) => "Not",
            Start::Running(_) => "Running",
            Start::Over => "Over",
        })
    }
}

/// What can be done with a job from any thread.
#[derive(Debug, Default)]
pub struct JobControl {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    begun: bool,
    /// The worker's turn; else the caller's.
    running: bool,
    /// The worker stands still when it has dealt with so many bytes.
    until: u64,
    cancelled: bool,
    progress: Progress,
    result: Option<Result<()>>,
}

impl Job {
    /// An operation that has not begun: nothing happens before the first step.
    pub fn new(operation: impl FnOnce(ProgressFn<'_>) -> Result<()> + Send + 'static) -> Job {
        Job {
            operation: Mutex::new(Start::Not(Box::new(operation))),
            control: Arc::default(),
        }
    }

    /// Goes on for about `max_bytes`, at least one report of progress. `true`: there is more to do. The operation's
    /// failure is returned by the step it happens in and by each later one. Steps from several threads take turns.
    pub fn step(&self, max_bytes: u64) -> Result<bool> {
        let mut start = self.operation.lock();
        match std::mem::replace(&mut *start, Start::Over) {
            Start::Not(operation) => *start = self.begin(operation, max_bytes)?,
            running => {
                *start = running;
                self.control.go_on(max_bytes);
            }
        }
        let mut state = self.control.state.lock();
        while state.running {
            self.control.changed.wait(&mut state);
        }
        match &state.result {
            None => Ok(true),
            Some(result) => result.clone().map(|()| false),
        }
    }

    fn begin(&self, operation: Operation, max_bytes: u64) -> Result<Start> {
        if !self.control.begin(max_bytes) {
            return Ok(Start::Over);
        }
        let control = self.control.clone();
        let work = move || {
            let mut end = End(&control, None);
            end.1 = Some(operation(&mut |now| control.report(now)));
        };
        let spawned = std::thread::Builder::new().name("avhdx-job".into()).spawn(work);
        spawned.map(Start::Running).map_err(|cause| {
            let error = Error::io("start a thread for the job", cause);
            self.control.end(Err(error.clone()));
            error
        })
    }

    /// For progress and cancelling from other threads.
    pub fn control(&self) -> &Arc<JobControl> {
        &self.control
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.control.cancel_and_wait();
        if let Start::Running(worker) = std::mem::replace(self.operation.get_mut(), Start::Over) {
            // What it had to say is in the result.
            let _ = worker.join();
        }
    }
}

/// Tells the caller that the worker is done, also when it panics.
struct End<'a>(&'a JobControl, Option<Result<()>>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let bug = || Err(Error::new(ErrorKind::Bug, "the operation hit a defect of this library"));
        self.0.end(self.1.take().unwrap_or_else(bug));
    }
}

impl JobControl {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.state.lock().progress
    }

    /// Whether it ended, in whatever way.
    pub fn is_over(&self) -> bool {
        self.state.lock().result.is_some()
    }

    /// The next report of progress, or the first step, ends the operation with `Cancelled`, in a state from which
    /// running it again goes on.
    pub fn cancel(&self) {
        self.state.lock().cancelled = true;
    }

    /// Cancels, and waits until the operation holds nothing any more.
    pub fn cancel_and_wait(&self) {
        let mut state = self.state.lock();
        state.cancelled = true;
        if !state.begun {
            state.result.get_or_insert_with(|| Err(cancelled()));
        }
        state.running = state.result.is_none();
        self.changed.notify_all();
        while state.result.is_none() {
            self.changed.wait(&mut state);
        }
    }

    /// False if it was cancelled before.
    fn begin(&self, max_bytes: u64) -> bool {
        let mut state = self.state.lock();
        if state.cancelled {
            state.result.get_or_insert_with(|| Err(cancelled()));
        }
        state.begun = true;
        drop(state);
        self.go_on(max_bytes);
        !self.is_over()
    }

    fn go_on(&self, max_bytes: u64) {
        let mut state = self.state.lock();
        if state.result.is_none() {
            state.until = state.progress.done.saturating_add(max_bytes.max(1));
            state.running = true;
            self.changed.notify_all();
        }
    }

    /// The worker's report: false cancels.
    fn report(&self, now: Progress) -> bool {
        let mut state = self.state.lock();
        state.progress = now;
        if !state.cancelled && now.done >= state.until {
            state.running = false;
            self.changed.notify_all();
            while !state.running {
                self.changed.wait(&mut state);
            }
        }
        !state.cancelled
    }

    fn end(&self, result: Result<()>) {
        let mut state = self.state.lock();
        state.result = Some(result);
        state.running = false;
        self.changed.notify_all();
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the job was cancelled").with_hint("run the operation again to go on")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const MIB: u64 = 1 << 20;

    /// 16 MiB in pieces of one.
    fn sixteen(reached: Arc<AtomicU64>) -> Job {
        Job::new(move |report| {
            for done in 1..=16 {
                reached.store(done, Ordering::SeqCst);
                let (done, total) = (done * MIB, 16 * MIB);
                if !report(Progress { done, total }) {
                    return Err(cancelled());
                }
            }
            Ok(())
        })
    }

    #[test]
    fn a_step_does_what_it_is_given_and_then_stands_still() {
        let reached = Arc::new(AtomicU64::new(0));
        let job = sixteen(reached.clone());
        assert_eq!(reached.load(Ordering::SeqCst), 0, "nothing before the first step");
        assert!(job.step(3 * MIB).unwrap());
        assert_eq!(reached.load(Ordering::SeqCst), 3);
        assert_eq!(job.control().progress().done, 3 * MIB);
        assert!(job.step(0).unwrap(), "a step of nothing goes on by one report");
        assert_eq!(reached.load(Ordering::SeqCst), 4);
        assert!(!job.step(u64::MAX).unwrap());
        assert!(!job.step(1).unwrap(), "over stays over");
        assert!(job.control().is_over());
    }

    #[test]
    fn cancelling_ends_it_at_its_next_report() {
        let reached = Arc::new(AtomicU64::new(0));
        let job = sixteen(reached.clone());
        job.step(2 * MIB).unwrap();
        job.control().cancel();
        assert_eq!(job.step(MIB).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(job.step(MIB).unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(reached.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_it_holds_is_given_back_when_it_is_dropped_or_waited_for() {
        for begun in [false, true] {
            for wait in [false, true] {
                let held = Arc::new(AtomicU64::new(0));
                let job = sixteen(held.clone());
                if begun {
                    job.step(MIB).unwrap();
                }
                let control = job.control().clone();
                if wait {
                    control.cancel_and_wait();
                    assert_eq!(job.step(1).unwrap_err().kind(), ErrorKind::Cancelled);
                }
                drop(job);
                assert_eq!(Arc::strong_count(&held), 1, "begun {begun}, wait {wait}");
            }
        }
    }

    #[test]
    fn a_panic_is_a_bug_and_not_a_hang() {
        let job = Job::new(|_| std::panic::resume_unwind(Box::new("on purpose")));
        assert_eq!(job.step(1).unwrap_err().kind(), ErrorKind::Bug);
    }

    #[test]
    fn steps_and_cancel_from_many_threads() {
        let job = Arc::new(sixteen(Arc::default()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| while job.step(MIB).is_ok_and(|more| more) {});
            }
            scope.spawn(|| job.control().cancel());
        });
        assert!(job.control().is_over() || job.step(u64::MAX).is_ok_and(|more| !more));
    }
}
