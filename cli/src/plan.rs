//! What an operation would do, without doing it.

use std::path::{Path, PathBuf};

use avhdx::ops::{self, Plan};
use avhdx::options::{CompactOptions, DeleteOptions, MergeMode, RebaseOptions};
use avhdx::Chain;
use clap::{Args, Subcommand};

use crate::args::{Merging, Open};
use crate::report::{human, safe};
use crate::surgery::{layer_of, Into};
use crate::{convert, shape, Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    operation: Operation,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Operation {
    /// As merge
    Merge {
        /// The file merged away
        child: PathBuf,
        /// The ancestor merged into, instead of the parent
        #[arg(long)]
        into: Option<PathBuf>,
        #[command(flatten)]
        merging: Merging,
        #[command(flatten)]
        open: Open,
    },
    /// As delete
    Delete {
        /// The disk written to now
        leaf: PathBuf,
        /// The file of its chain to delete, by path or layer number
        file: PathBuf,
        /// Where its content goes
        #[arg(long, value_enum, default_value = "auto")]
        into: Into,
        #[command(flatten)]
        open: Open,
    },
    /// As compact
    Compact {
        /// The disk; of a chain, the last file
        path: PathBuf,
        /// As for compact
        #[arg(long, value_enum, default_value = "full")]
        mode: shape::Mode,
        #[command(flatten)]
        open: Open,
    },
    /// As convert
    Convert(convert::Convert),
    /// As rebase
    Rebase {
        /// The disk
        leaf: PathBuf,
        /// The new parent
        parent: PathBuf,
        #[command(flatten)]
        open: Open,
    },
    /// As detach
    Detach {
        /// The disk
        leaf: PathBuf,
        #[command(flatten)]
        open: Open,
    },
}

pub(crate) fn plan(args: &PlanArgs) -> Outcome {
    let plan = match &args.operation {
        Operation::Merge {
            child,
            into,
            merging,
            open,
        } => {
            let chain = reading(child, open)?;
            let base = into.as_deref().map_or(Ok(1), |into| layer_of(&chain, into))?;
            let mut options = merging.options();
            // There is nothing to wait for, and nothing was written that could be looked at.
            (options.rate, options.verify) = (0, false);
            if options.mode == MergeMode::Copy {
                options.mode = MergeMode::Auto;
            }
            ops::plan(&chain, |chain| {
                ops::merge(chain, 0, base, &options, &mut |_| true).map(drop)
            })?
        }
        Operation::Delete { leaf, file, into, open } => {
            let chain = reading(leaf, open)?;
            let layer = layer_of(&chain, file)?;
            let mut options = DeleteOptions::default();
            options.into = (*into).into();
            ops::plan(&chain, |chain| {
                ops::delete_layer(chain, layer, &options, &mut |_| true).map(drop)
            })?
        }
        Operation::Compact { path, mode, open } => {
            let mut options = CompactOptions::default();
            options.mode = (*mode).into();
            ops::plan(&reading(path, open)?, |chain| {
                ops::compact(chain, &options, &mut |_| true).map(drop)
            })?
        }
        Operation::Convert(convert) => {
            if convert.out == Path::new("-") {
                return Err(Failure::Usage("what goes to standard output needs no plan".into()));
            }
            let mut options = convert.options()?;
            options.rate = 0;
            ops::plan(&reading(&convert.leaf, &convert.open)?, |chain| {
                ops::convert(chain, &convert.out, &options, &mut |_| true).map(drop)
            })?
        }
        Operation::Rebase { leaf, parent, open } => ops::plan(&reading(leaf, open)?, |chain| {
            ops::rebase(chain, parent, &RebaseOptions::default(), &mut |_| true).map(drop)
        })?,
        Operation::Detach { leaf, open } => ops::plan(&reading(leaf, open)?, |chain| {
            ops::detach(chain, &RebaseOptions::default(), &mut |_| true).map(drop)
        })?,
    };
    let json = args.json || matches!(&args.operation, Operation::Convert(convert) if convert.json);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&plan).unwrap_or_default()),
        false => tell(&plan),
    }
    Ok(0)
}

/// Planning writes nothing.
fn reading(leaf: &Path, open: &Open) -> Result<Chain, Failure> {
    Ok(Chain::open(leaf, &open.reading())?)
}

fn tell(plan: &Plan) {
    println!("{} to write", human(plan.bytes));
    for file in &plan.files {
        let name = safe(&file.filename.to_string_lossy());
        match (file.before, file.after) {
            (None, Some(after)) => println!("new      {name}: {}", human(after)),
            (Some(before), Some(after)) if before == after => println!("changed  {name}: {}, as now", human(after)),
            (Some(before), Some(after)) => println!("changed  {name}: {} now, {} then", human(before), human(after)),
            (Some(before), None) => println!("removed  {name}: {}", human(before)),
            (None, None) => {}
        }
    }
    match plan.free {
        Some(free) if plan.fits() => println!("{} free", human(free)),
        Some(free) => println!("only {} free", human(free)),
        None => {}
    }
}
