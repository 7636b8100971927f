//! Messages for whoever runs the process: what the library did that may be of interest. Silent unless a sink is set.

use parking_lot::RwLock;

/// Something the administrator should know.
pub const WARNING: u32 = 2;
/// Something that explains what happened.
pub const INFO: u32 = 3;

type Sink = Box<dyn Fn(u32, &str) + Send + Sync>;

static SINK: RwLock<Option<(Sink, u32)>> = RwLock::new(None);

/// Sets the process's sink for messages up to `level`.
pub fn set(sink: Option<Sink>, level: u32) {
    let old = std::mem::replace(&mut *SINK.write(), sink.map(|sink| (sink, level)));
    // Dropped without the lock: it may run the caller's code.
    drop(old);
}

fn emit(level: u32, message: impl FnOnce() -> String) {
    if let Some((sink, _)) = SINK.read().as_ref().filter(|(_, most)| level <= *most) {
        sink(level, &message());
    }
}

pub(crate) fn warning(message: impl FnOnce() -> String) {
    emit(WARNING, message);
}

pub(crate) fn info(message: impl FnOnce() -> String) {
    emit(INFO, message);
}
