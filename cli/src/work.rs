//! Verbs that make and change files.

use avhdx::ops::{self, MergeReport, Pending, PendingStage};
use avhdx::options::{CheckpointOptions, CreateOptions, DiskType};
use avhdx::Chain;

use crate::args::{Command, Merge};
use crate::bar::Bar;
use crate::{Failure, Outcome};

pub(crate) fn small(value: Option<u64>, name: &str) -> Result<u32, Failure> {
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
        Command::Merge(Merge {
            child,
            into,
            merging,
            json,
            open,
        }) => {
            let options = merging.options();
            let mut bar = Bar::new("merging");
            let report = ops::merge_path(&child, into.as_deref(), &open.writing(), &options, &mut |p| {
                bar.show(p.done, p.total)
            })?;
            bar.finish();
            merged(&report, json);
            Ok(0)
        }
        Command::Pending { leaf, json, open } => {
            let found = ops::pending(&leaf, &open.reading())?;
            match (json, &found) {
                (true, _) => println!("{}", serde_json::to_string_pretty(&found).unwrap_or_default()),
                (false, None) => println!("nothing is pending"),
                (false, Some(found)) => println!("{}; avhdx resume finishes it", described(found)),
            }
            Ok(0)
        }
        Command::Resume {
            leaf,
            merging,
            json,
            open,
        } => {
            let mut bar = Bar::new("merging");
            let report = ops::resume(&leaf, &open.writing(), &merging.options(), &mut |p| {
                bar.show(p.done, p.total)
            })?;
            bar.finish();
            match report {
                Some(report) => merged(&report, json),
                None if json => println!("null"),
                None => println!("nothing is pending"),
            }
            Ok(0)
        }
        _ => Err(Failure::Usage("an unknown command".into())),
    }
}

fn merged(report: &MergeReport, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
        return;
    }
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
}

fn described(found: &Pending) -> String {
    let target = found.target.display();
    match (found.stage, found.base - found.top) {
        (PendingStage::Merging, 1) => format!("a merge of layer {} into {target} was interrupted", found.top),
        (PendingStage::Merging, _) => {
            let (top, last) = (found.top, found.base - 1);
            format!("a merge of layers {top} to {last} into {target} was interrupted")
        }
        _ => format!("a merge into {target} is complete and left files behind"),
    }
}
