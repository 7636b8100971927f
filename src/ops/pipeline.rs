//! Work done ahead: threads read and look at pieces while the caller's thread writes those before, in order.

use std::collections::VecDeque;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, SyncSender};
use std::thread;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// Where pieces come from, and where what was made of them goes: both in the caller's thread.
pub(super) trait Ends<P, R> {
    /// The next piece; `None` at the end, and from then on.
    fn next(&mut self) -> Result<Option<P>>;
    /// Takes the results, in the order of their pieces.
    fn take(&mut self, result: R) -> Result<()>;
}

/// A piece, and who waits for what is made of it.
type Order<P, R> = (P, SyncSender<thread::Result<Result<R>>>);

/// Has `work` done on every piece, by so many threads; 0: by the caller's.
pub(super) fn run<P: Send, R: Send>(
    threads: usize,
    ends: &mut dyn Ends<P, R>,
    work: impl Fn(P) -> Result<R> + Sync,
) -> Result<()> {
    if threads == 0 {
        while let Some(piece) = ends.next()? {
            ends.take(work(piece)?)?;
        }
        return Ok(());
    }
    let (orders, pieces) = channel::<Order<P, R>>();
    let (pieces, stopped) = (Mutex::new(pieces), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads {
            let work = || work_on(&pieces, &stopped, &work);
            match thread::Builder::new()
                .name("avhdx-read".into())
                .spawn_scoped(scope, work)
            {
                Ok(worker) => workers.push(worker),
                Err(cause) => {
                    stopped.store(true, Ordering::Relaxed);
                    drop(orders);
                    return Err(Error::io("start a thread to read", cause).with_hint("ask for fewer threads"));
                }
            }
        }
        let result = feed(threads, ends, orders);
        stopped.store(result.is_err(), Ordering::Relaxed);
        // Not left to the scope, whose end thread sanitizers do not see.
        for worker in workers {
            let _ = worker.join();
        }
        result
    })
}

/// The caller's part. The threads end when this has, one way or another: then there are no more orders.
fn feed<P, R>(threads: usize, ends: &mut dyn Ends<P, R>, orders: Sender<Order<P, R>>) -> Result<()> {
    let mut waiting = VecDeque::new();
    loop {
        // One for each thread, and one or two done already.
        while waiting.len() < threads + 2 {
            let Some(piece) = ends.next()? else { break };
            let (reply, result) = sync_channel(1);
            let _ = orders.send((piece, reply));
            waiting.push_back(result);
        }
        let Some(result) = waiting.pop_front() else {
            return Ok(());
        };
        match result.recv() {
            Ok(Ok(result)) => ends.take(result?)?,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => return Err(Error::new(ErrorKind::Bug, "a thread that reads has gone")),
        }
    }
}

fn work_on<P, R>(pieces: &Mutex<Receiver<Order<P, R>>>, stopped: &AtomicBool, work: &(impl Fn(P) -> Result<R> + Sync)) {
    loop {
        let next = pieces.lock().recv();
        let Ok((piece, reply)) = next else { break };
        if !stopped.load(Ordering::Relaxed) {
            // Nobody listens any more after a failure.
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| work(piece))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts to `end`, and fails or panics where it is told to.
    struct Numbers {
        next: u32,
        end: u32,
        fail_at: u32,
        taken: Vec<u32>,
    }

    impl Ends<u32, u32> for Numbers {
        fn next(&mut self) -> Result<Option<u32>> {
            self.next += 1;
            Ok((self.next <= self.end).then_some(self.next))
        }

        fn take(&mut self, result: u32) -> Result<()> {
            if result == self.fail_at {
                return Err(Error::new(ErrorKind::NoSpace, "full"));
            }
            self.taken.push(result);
            Ok(())
        }
    }

    fn numbers(fail_at: u32) -> Numbers {
        Numbers {
            next: 0,
            end: 100,
            fail_at,
            taken: Vec::new(),
        }
    }

    #[test]
    fn results_come_in_order_and_stop_at_a_failure() {
        for threads in [0, 1, 7] {
            let mut ends = numbers(0);
            run(threads, &mut ends, Ok).unwrap();
            assert_eq!(ends.taken, (1..=100).collect::<Vec<_>>());

            let mut ends = numbers(50);
            assert_eq!(run(threads, &mut ends, Ok).unwrap_err().kind(), ErrorKind::NoSpace);
            assert_eq!(ends.taken, (1..50).collect::<Vec<_>>());

            let mut ends = numbers(0);
            let failing = |n| match n {
                30 => Err(Error::new(ErrorKind::Io, "unreadable")),
                n => Ok(n),
            };
            assert_eq!(run(threads, &mut ends, failing).unwrap_err().kind(), ErrorKind::Io);
            assert_eq!(ends.taken, (1..30).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for threads in [0, 3] {
            let mut ends = numbers(0);
            let panicking = |n: u32| if n == 20 { panic!("twenty") } else { Ok(n) };
            let panic = catch_unwind(AssertUnwindSafe(|| run(threads, &mut ends, panicking))).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"twenty"));
            assert_eq!(ends.taken.len(), 19);
        }
    }
}
