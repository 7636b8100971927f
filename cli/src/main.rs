//! The `avhdx` command. Exit status: 0 done, 1 failed, 2 wrong usage, 3 check found a broken rule. Compare: 1 different,
//! 2 failed. Monitor: 3 a threshold is exceeded.

mod args;
mod bar;
mod contents;
mod control;
mod convert;
mod data;
mod monitor;
mod plan;
mod prune;
mod repair;
mod report;
mod serve;
mod shape;
mod surgery;
mod tree;
mod work;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;

/// Why a command did not do what was asked.
pub(crate) enum Failure {
    /// The library's word.
    Disk(avhdx::Error),
    /// Standard input or output.
    Stream(std::io::Error),
    /// The options do not go together.
    Usage(String),
    /// Another program that was needed, or that answered: message and hint.
    Other(String, String),
}

impl From<avhdx::Error> for Failure {
    fn from(error: avhdx::Error) -> Self {
        Failure::Disk(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Stream(error)
    }
}

/// 0, or 3 where a check found something.
pub(crate) type Outcome = Result<u8, Failure>;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match run(command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => ExitCode::from(tell(failure)),
    }
}

/// Says on standard error what went wrong; returns the exit status.
pub(crate) fn tell(failure: Failure) -> u8 {
    match failure {
        Failure::Disk(error) => {
            eprintln!("avhdx: {}", error.chain_text());
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            1
        }
        // The reader has what it wanted.
        Failure::Stream(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 0,
        Failure::Stream(error) => {
            eprintln!("avhdx: standard input or output: {error}");
            1
        }
        Failure::Other(message, hint) => {
            eprintln!("avhdx: {message}");
            if !hint.is_empty() {
                eprintln!("hint: {hint}");
            }
            1
        }
        Failure::Usage(message) => {
            eprintln!("avhdx: {message}");
            eprintln!("hint: see avhdx --help");
            2
        }
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Info {
            path,
            json,
            chain,
            open,
        } => report::info(&path, &open, json, chain),
        Command::Map { path, json, open } => report::map(&path, &open, json),
        Command::Check {
            path,
            json,
            windows,
            open,
        } => report::check(&path, &open, json, windows),
        Command::Repair { path, mending, open } => repair::repair(&path, &mending, &open),
        Command::Undo { path, undo, open } => repair::undo(&path, undo.as_deref(), &open),
        Command::Read { path, range, open } => data::read(&path, &range, &open),
        Command::Write {
            path,
            range,
            pattern,
            open,
        } => data::write(&path, &range, pattern, &open),
        Command::Zero { path, range, open } => data::zero(&path, &range, &open),
        Command::Discard { path, range, open } => data::discard(&path, &range, &open),
        Command::Serve {
            leaf,
            socket,
            read_only,
            run,
            plugin,
            open,
        } => serve::serve(&leaf, socket, read_only, run, plugin, &open),
        Command::Control { socket, export, verb } => control::control(&socket, export.as_deref(), verb),
        Command::Diff(args) => contents::diff(&args),
        Command::Compare(args) => contents::compare(&args),
        Command::Digest(args) => contents::digest(&args),
        Command::Tree(args) => tree::tree(&args),
        Command::Monitor(args) => monitor::monitor(&args),
        Command::Prune(args) => prune::prune(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Migrate(args) => convert::migrate(&args),
        Command::Surgery(verb) => surgery::run(verb),
        Command::Plan(planned) => plan::plan(&planned),
        Command::Compact(args) => shape::compact(&args),
        Command::Resize(args) => shape::resize(&args),
        Command::MinSize(args) => shape::min_size(&args),
        Command::Meta(args) => shape::meta(&args),
        Command::SetPhysicalSectorSize(args) => shape::set_sector_size(&args),
        Command::ResetDiskId(args) => shape::reset_id(&args),
        command => work::run(command),
    }
}
