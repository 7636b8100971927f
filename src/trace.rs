//! What the library has to say while it works, for whoever asked to hear it. Silent by default: nothing is formatted
//! unless a sink wants the level. One sink for the process, called on the thread that has the news, with no lock held.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use parking_lot::RwLock;

/// How important a message is. Numbers are those of the C ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// Something failed that no return value reports.
    Error = 1,
    /// Something is odd and was worked around.
    Warn = 2,
    /// What was decided: a parent found, a log replayed.
    Info = 3,
    /// Steps, for a bug report.
    Debug = 4,
}

/// Receives messages: one line each, without a final newline.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

static MOST: AtomicU32 = AtomicU32::new(0);
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Replaces the sink of the process. It gets messages of `most` and more important ones; `None` silences.
pub fn set_sink(sink: Option<(Sink, Level)>) {
    let (sink, most) = match sink {
        Some((sink, most)) => (Some(sink), most as u32),
        None => (None, 0),
    };
    let before = {
        let mut current = SINK.write();
        MOST.store(most, Ordering::Relaxed);
        std::mem::replace(&mut *current, sink)
    };
    // Outside the lock: dropping a sink may run the caller's code.
    drop(before);
}

/// Whether anybody listens at this level.
pub fn enabled(level: Level) -> bool {
    level as u32 <= MOST.load(Ordering::Relaxed)
}

fn send(level: Level, message: impl FnOnce() -> String) {
    if !enabled(level) {
        return;
    }
    let sink = SINK.read().clone();
    if let Some(sink) = sink {
        sink(level, &message());
    }
}

/// Reports at [`Level::Error`].
pub fn error(message: impl FnOnce() -> String) {
    send(Level::Error, message);
}

/// Reports at [`Level::Warn`].
pub fn warn(message: impl FnOnce() -> String) {
    send(Level::Warn, message);
}

/// Reports at [`Level::Info`].
pub fn info(message: impl FnOnce() -> String) {
    send(Level::Info, message);
}

/// Reports at [`Level::Debug`].
pub fn debug(message: impl FnOnce() -> String) {
    send(Level::Debug, message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[test]
    fn silent_until_asked_and_only_as_loud_as_asked() {
        warn(|| panic!("nobody listens, so nothing is formatted"));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let copy = heard.clone();
        let sink: Sink = Arc::new(move |level, text: &str| copy.lock().push((level, text.to_string())));
        set_sink(Some((sink, Level::Warn)));
        warn(|| "a".into());
        info(|| "b".into());
        // A sink may replace itself.
        let inner: Sink = Arc::new(|_, _| set_sink(None));
        error(|| "c".into());
        set_sink(Some((inner, Level::Debug)));
        debug(|| "d".into());
        assert!(!enabled(Level::Error));
        assert!(heard.lock().iter().any(|m| *m == (Level::Warn, "a".to_string())));
        assert!(heard.lock().iter().all(|m| m.1 != "b"));
    }
}
