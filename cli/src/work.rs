//! Verbs that make and change files.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use avhdx::options::{CheckpointOptions, CreateOptions, DiskType, MergeOptions, Progress};
use avhdx::{ops, Chain};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Command;
use crate::{Failure, Outcome};

fn small(value: Option<u64>, name: &str) -> Result<u32, Failure> {
    u32::try_from(value.unwrap_or(0)).map_err(|_| Failure::Usage(format!("{name} is too large")))
}

pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Create {
            path,
            size,
            kind,
            parent,
            block_size,
            logical_sector_size,
            physical_sector_size,
            log_size,
            open,
        } => {
            let mut options = CreateOptions::default();
            options.disk_type = match (kind, &parent) {
                (Some(kind), _) => kind.into(),
                (None, Some(_)) => DiskType::Differencing,
                (None, None) => DiskType::Dynamic,
            };
            if parent.is_none() && size.is_none() {
                return Err(Failure::Usage("a disk without parent needs --size".into()));
            }
            options.size = size.unwrap_or(0);
            options.block_size = small(block_size, "--block-size")?;
            options.logical_sector_size = small(logical_sector_size, "--logical-sector-size")?;
            options.physical_sector_size = small(physical_sector_size, "--physical-sector-size")?;
            options.log_size = small(log_size, "--log-size")?;
            options.parent = parent;
            options.open = open.writing();
            ops::create(&path, &options)?;
            Ok(0)
        }
        Command::Checkpoint {
            leaf,
            new,
            block_size,
            open,
        } => {
            let chain = Chain::open(&leaf, &open.writing())?;
            let mut options = CheckpointOptions::default();
            options.block_size = small(block_size, "--block-size")?;
            ops::checkpoint(&chain, &new, &options)?;
            chain.close()?;
            Ok(0)
        }
        Command::Merge {
            child,
            into,
            mode,
            keep,
            orphan_siblings,
            verify,
            rate,
            open,
        } => {
            let mut options = MergeOptions::default();
            options.mode = mode.into();
            options.unlink = !keep;
            options.orphan_siblings = orphan_siblings;
            options.verify = verify;
            options.rate = rate.unwrap_or(0);
            let mut bar = Bar::new("merging");
            let report = ops::merge_path(&child, into.as_deref(), &open.writing(), &options, &mut |p| bar.show(p))?;
            bar.finish();
            println!("merged {} bytes into {}", report.bytes, report.target.display());
            if report.reflinked > 0 {
                println!("{} of them shared, not copied", report.reflinked);
            }
            for path in &report.relinked {
                println!("{} now has it as its parent", path.display());
            }
            for path in &report.removed {
                println!("removed {}", path.display());
            }
            Ok(0)
        }
        Command::Convert { leaf, out, open } => {
            let chain = Chain::open(&leaf, &open.reading())?;
            let mut bar = Bar::new("converting");
            ops::convert_raw(&chain, &out, &mut |p| bar.show(p))?;
            bar.finish();
            Ok(0)
        }
        _ => Err(Failure::Usage("an unknown command".into())),
    }
}

/// A progress bar on a terminal, nothing elsewhere; and Ctrl-C, which asks the operation to stop where it can be
/// continued. A second Ctrl-C stops at once, which is as safe as a power cut.
struct Bar {
    bar: Option<ProgressBar>,
    stop: Arc<AtomicBool>,
}

impl Bar {
    fn new(what: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let _ = ctrlc::set_handler(move || {
            if asked.swap(true, Ordering::Relaxed) {
                std::process::exit(1);
            }
        });
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{msg} [{bar:40}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style).with_message(what)
        });
        Bar { bar, stop }
    }

    fn show(&mut self, progress: Progress) -> bool {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
        !self.stop.load(Ordering::Relaxed)
    }

    fn finish(&self) {
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
