//! The `avhdx` command. Exit status: 0 done, 1 failed, 2 wrong usage, 3 check found a broken rule.

mod args;
mod bar;
mod control;
mod data;
mod report;
mod serve;
mod shape;
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
        Err(Failure::Disk(error)) => {
            eprintln!("avhdx: {}", error.chain_text());
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(1)
        }
        // The reader has what it wanted.
        Err(Failure::Stream(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Stream(error)) => {
            eprintln!("avhdx: standard input or output: {error}");
            ExitCode::from(1)
        }
        Err(Failure::Other(message, hint)) => {
            eprintln!("avhdx: {message}");
            if !hint.is_empty() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(1)
        }
        Err(Failure::Usage(message)) => {
            eprintln!("avhdx: {message}");
            eprintln!("hint: see avhdx --help");
            ExitCode::from(2)
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
        Command::Compact(args) => shape::compact(&args),
        Command::Resize(args) => shape::resize(&args),
        Command::MinSize(args) => shape::min_size(&args),
        Command::Meta(args) => shape::meta(&args),
        Command::SetPhysicalSectorSize(args) => shape::set_sector_size(&args),
        Command::ResetDiskId(args) => shape::reset_id(&args),
        command => work::run(command),
    }
}
