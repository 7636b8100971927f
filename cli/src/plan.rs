//! What an operation would do, without doing it.

use std::path::Path;

use avhdx::ops::{self, Plan};
use avhdx::options::{CompactOptions, DeleteOptions, RebaseOptions};
use avhdx::Chain;
use clap::Subcommand;

use crate::args::{Merge, Open};
use crate::convert::Convert;
use crate::report::{human, safe};
use crate::shape::Compact;
use crate::surgery::{layer_of, Delete, Detach, Rebase};
use crate::{Failure, Outcome};

/// Operations that can be planned, with their own arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Planned {
    /// As merge
    Merge(Merge),
    /// As delete
    Delete(Delete),
    /// As compact
    Compact(Compact),
    /// As convert
    Convert(Convert),
    /// As rebase
    Rebase(Rebase),
    /// As detach
    Detach(Detach),
}

pub(crate) fn plan(planned: &Planned) -> Outcome {
    let (plan, json) = match planned {
        Planned::Merge(args) => {
            let chain = reading(&args.child, &args.open)?;
            let base = args.into.as_deref().map_or(Ok(1), |into| layer_of(&chain, into))?;
            let options = args.merging.options().rehearsed();
            let plan = ops::plan(&chain, |chain| {
                ops::merge(chain, 0, base, &options, &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
        Planned::Delete(args) if args.subtree => {
            let message = "a branch is only removed: there is nothing to plan";
            return Err(Failure::Usage(message.into()));
        }
        Planned::Delete(args) => {
            let chain = reading(&args.leaf, &args.open)?;
            let layer = layer_of(&chain, &args.file)?;
            let mut options = DeleteOptions::default();
            (options.into, options.mode) = (args.into.into(), args.mode.into());
            let options = options.rehearsed();
            let plan = ops::plan(&chain, |chain| {
                ops::delete_layer(chain, layer, &options, &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
        Planned::Compact(args) => {
            let mut options = CompactOptions::default();
            options.mode = args.mode.into();
            let plan = ops::plan(&reading(&args.path, &args.open)?, |chain| {
                ops::compact(chain, &options, &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
        Planned::Convert(args) if args.out == Path::new("-") => {
            let message = "what goes to standard output needs no plan";
            return Err(Failure::Usage(message.into()));
        }
        Planned::Convert(args) => {
            let options = args.options()?.rehearsed();
            let plan = ops::plan(&reading(&args.leaf, &args.open)?, |chain| {
                ops::convert(chain, &args.out, &options, &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
        Planned::Rebase(args) => {
            let plan = ops::plan(&reading(&args.leaf, &args.open)?, |chain| {
                ops::rebase(chain, &args.parent, &RebaseOptions::default(), &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
        Planned::Detach(args) => {
            let plan = ops::plan(&reading(&args.leaf, &args.open)?, |chain| {
                ops::detach(chain, &RebaseOptions::default(), &mut |_| true).map(drop)
            });
            (plan?, args.json)
        }
    };
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
