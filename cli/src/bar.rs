//! Progress of long operations.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Once;

use indicatif::{ProgressBar, ProgressStyle};

static STOP: AtomicBool = AtomicBool::new(false);

/// A progress bar on a terminal, nothing elsewhere; and Ctrl-C, which asks the operation to stop where it can be
/// continued. A second Ctrl-C stops at once, which is as safe as a power cut.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(crate) fn new(what: &'static str) -> Self {
        // One handler for all the bars of a command that has several.
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            let _ = ctrlc::set_handler(|| {
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            });
        });
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{msg} [{bar:40}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_message(what)
        });
        Bar { bar }
    }

    /// False when the user asked to stop.
    pub(crate) fn show(&mut self, done: u64, total: u64) -> bool {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        !STOP.load(Ordering::Relaxed)
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.finish();
    }
}
