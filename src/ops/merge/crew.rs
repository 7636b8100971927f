//! The first pass of a merge with several threads: the caller's plans, reports and keeps to the rate, the others copy.
//! Pieces end in any order, which is as good: nothing of the merged layers is given up before all have.

use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, SyncSender};
use std::thread;

use parking_lot::Mutex;

use super::copy::{Route, STEP};
use crate::chain::snapshot::{walk, Walk};
use crate::error::{Error, ErrorKind, Result};
use crate::image::lookup::Source;
use crate::ops::pace::Pace;

/// What the threads share.
struct Crew<'a> {
    route: &'a Route,
    size: u64,
    /// Why it stops before the end.
    failure: Mutex<Option<Error>>,
    /// Everything below is copied, once the threads have ended.
    sound: AtomicU64,
}

/// A piece to copy, and where on the disk it is.
type Piece = (u64, Walk);

/// Copies what the merged layers hold. Returns up to where it is copied: the end, or less when the storage was full.
pub(super) fn copy(route: &Route, size: u64, threads: usize, pace: &mut Pace<'_>, copied: &mut u64) -> Result<u64> {
    let crew = Crew {
        route,
        size,
        failure: Mutex::new(None),
        sound: AtomicU64::new(size),
    };
    let (orders, pieces) = sync_channel::<Piece>(2 * threads);
    let (done, reports) = channel();
    let pieces = Mutex::new(pieces);
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (crew, pieces, done) = (&crew, &pieces, done.clone());
            let worker = thread::Builder::new().name("avhdx-copy".into());
            match worker.spawn_scoped(scope, move || crew.work(pieces, &done)) {
                Ok(worker) => workers.push(worker),
                Err(cause) => {
                    let error = Error::io("start a thread to copy", cause).with_path(route.target.name());
                    crew.stop(error.with_hint("ask for fewer threads; run the merge again to finish it"));
                }
            }
        }
        drop(done);
        if let Err(error) = crew.plan(orders, &reports, pace, copied) {
            crew.stop(error);
        }
        // ORDER: all threads have ended before the target is committed.
        for worker in workers {
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
    });
    match crew.failure.into_inner() {
        None => Ok(size),
        Some(error) if error.kind() == ErrorKind::NoSpace => Ok(crew.sound.into_inner()),
        Some(error) => Err(error),
    }
}

impl Crew<'_> {
    fn stop(&self, error: Error) {
        self.failure.lock().get_or_insert(error);
    }

    fn is_stopped(&self) -> bool {
        self.failure.lock().is_some()
    }

    /// The caller's part.
    fn plan(
        &self,
        orders: SyncSender<Piece>,
        reports: &Receiver<u64>,
        pace: &mut Pace<'_>,
        copied: &mut u64,
    ) -> Result<()> {
        let mut report = |len: u64, pace: &mut Pace<'_>| {
            *copied += len;
            match len {
                // Zeros, which were passed.
                0 => Ok(()),
                _ => pace.advance(len, len),
            }
        };
        let mut at = 0;
        while at < self.size && !self.is_stopped() {
            let mut found = walk(&self.route.merged, 0, at, self.size - at)?;
            if let Source::Data { .. } = found.source {
                found.len = found.len.min(STEP);
            } else {
                pace.pass(found.len)?;
            }
            let next = at + found.len;
            // Waits for a thread: all take pieces until there are none, whatever happens to them.
            if orders.send((at, found)).is_err() {
                break;
            }
            at = next;
            for len in reports.try_iter() {
                report(len, pace)?;
            }
        }
        drop(orders);
        for len in reports {
            report(len, pace)?;
        }
        Ok(())
    }

    /// The part of each thread. After a failure, its own or another's, it only takes what the caller still hands out.
    fn work(&self, pieces: &Mutex<Receiver<Piece>>, done: &Sender<u64>) {
        let mut panic = None;
        loop {
            let next = pieces.lock().recv();
            let Ok((at, found)) = next else { break };
            if !self.is_stopped() {
                match catch_unwind(AssertUnwindSafe(|| self.route.copy(at, &found))) {
                    Ok(Ok(len)) => {
                        // Nobody listens any more after a failure, which says more.
                        let _ = done.send(len);
                        continue;
                    }
                    Ok(Err(error)) => self.stop(error),
                    Err(cause) => {
                        self.stop(Error::new(ErrorKind::Bug, "copying hit a defect of this library"));
                        panic = Some(cause);
                    }
                }
            }
            self.sound.fetch_min(at, Ordering::Relaxed);
        }
        if let Some(cause) = panic {
            resume_unwind(cause);
        }
    }
}
