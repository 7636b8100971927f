//! Verbs that look at contents: diff, compare, digest.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use avhdx::ops::{self, CompareOptions, DigestAlgorithm, DigestOptions};
use avhdx::{Chain, ExtentState};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::args::{size, Open};
use crate::bar::Bar;
use crate::{tell, Failure, Outcome};

/// Ranges asked for at once.
const RANGES: usize = 4096;

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The disk; of a chain, the last file
    leaf: PathBuf,
    /// The older point: a layer by number (0 is the leaf) or path; the one below --to if left out
    #[arg(long, value_name = "LAYER")]
    from: Option<String>,
    /// The newer point
    #[arg(long, value_name = "LAYER", default_value = "0")]
    to: String,
    /// Read both and report only what really differs
    #[arg(long)]
    exact: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// A disk
    a: PathBuf,
    /// Another
    b: PathBuf,
    /// Disks of different sizes differ, even if the rest of the larger one is zeros
    #[arg(long)]
    strict: bool,
    /// Bytes read of each disk per second at most
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Args)]
pub(crate) struct Digest {
    /// The disks
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The checksum
    #[arg(long, value_enum, default_value = "sha256")]
    algorithm: Algorithm,
    /// The disk as of this layer: by number (0 is the leaf) or path
    #[arg(long, default_value = "0")]
    layer: String,
    /// Bytes read per second at most
    #[arg(long, value_parser = size)]
    rate: Option<u64>,
    #[command(flatten)]
    open: Open,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl From<Algorithm> for DigestAlgorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => DigestAlgorithm::Sha256,
            Algorithm::Sha512 => DigestAlgorithm::Sha512,
        }
    }
}

/// A layer, by number or by a path that leads to its file.
pub(crate) fn layer(chain: &Chain, text: &str) -> Result<usize, Failure> {
    let count = chain.layer_count();
    if let Ok(number) = text.parse::<usize>() {
        if number < count {
            return Ok(number);
        }
    }
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    let paths: Vec<PathBuf> = (0..count).map(|i| chain.layer_path(i)).collect::<Result<_, _>>()?;
    let found = paths.iter().position(|path| same(path, Path::new(text)));
    found.ok_or_else(|| {
        let names: Vec<String> = paths
            .iter()
            .enumerate()
            .map(|(i, path)| format!("{i} {path:?}"))
            .collect();
        Failure::Other(
            format!("{text:?} is no layer of the chain"),
            format!("its layers are {}", names.join(", ")),
        )
    })
}

pub(crate) fn diff(args: &Diff) -> Outcome {
    let chain = Chain::open(&args.leaf, &args.open.reading())?;
    let newer = layer(&chain, &args.to)?;
    let older = match &args.from {
        Some(text) => layer(&chain, text)?,
        None => newer + 1,
    };
    if older >= chain.layer_count() {
        return Err(Failure::Other(
            "there is no older layer to tell the difference from".into(),
            "the disk has no parent below that layer; see avhdx info --chain".into(),
        ));
    }
    let size = chain.layer_info(newer)?.virtual_size;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        write!(out, "[")?;
    } else {
        writeln!(out, "{:<18}{:<18}State", "Offset", "Length")?;
    }
    let (mut at, mut first) = (0, true);
    let (mut data, mut zero) = (0, 0);
    let mut ranges = Vec::new();
    while at < size {
        ranges.clear();
        at += ops::diff(&chain, newer, older, (at, size - at), args.exact, RANGES, &mut ranges)?;
        for range in &ranges {
            match range.state {
                ExtentState::Data => data += range.length,
                _ => zero += range.length,
            }
            if args.json {
                let value = json!({ "start": range.offset, "length": range.length, "state": range.state });
                write!(out, "{}{value}", if first { "\n" } else { ",\n" })?;
            } else {
                let (offset, length) = (format!("{:#x}", range.offset), format!("{:#x}", range.length));
                let state = format!("{:?}", range.state).to_lowercase();
                writeln!(out, "{offset:<18}{length:<18}{state}")?;
            }
            first = false;
        }
    }
    match args.json {
        true => writeln!(out, "\n]")?,
        false => writeln!(out, "{data} bytes of data, {zero} bytes of zeros of {size}")?,
    }
    out.flush()?;
    Ok(0)
}

/// 0 equal, 1 different, 2 could not be told.
pub(crate) fn compare(args: &Compare) -> Outcome {
    let compared = (|| {
        let open = args.open.reading();
        let a = Chain::open(&args.a, &open)?;
        let b = Chain::open(&args.b, &open)?;
        let mut options = CompareOptions::default();
        options.strict = args.strict;
        options.rate = args.rate.unwrap_or(0);
        let mut bar = Bar::new("comparing");
        let difference = ops::compare(&a, &b, &options, &mut |p| bar.show(p.done, p.total))?;
        bar.finish();
        match difference {
            None => writeln!(io::stdout(), "the disks are equal")?,
            Some(at) if at >= a.size().min(b.size()) && args.strict => {
                writeln!(
                    io::stdout(),
                    "the disks differ in size: {} and {} bytes",
                    a.size(),
                    b.size()
                )?;
            }
            Some(at) => writeln!(io::stdout(), "the disks differ, first at offset {at} ({at:#x})")?,
        }
        Ok::<_, Failure>(u8::from(difference.is_some()))
    })();
    match compared {
        Err(Failure::Stream(error)) => Err(Failure::Stream(error)),
        Err(failure) => {
            tell(failure);
            Ok(2)
        }
        Ok(status) => Ok(status),
    }
}

pub(crate) fn digest(args: &Digest) -> Outcome {
    let mut options = DigestOptions::default();
    options.rate = args.rate.unwrap_or(0);
    for path in &args.paths {
        let chain = Chain::open(path, &args.open.reading())?;
        let layer = layer(&chain, &args.layer)?;
        let mut bar = Bar::new("reading");
        let bytes = ops::digest(&chain, layer, args.algorithm.into(), &options, &mut |p| {
            bar.show(p.done, p.total)
        })?;
        bar.finish();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(io::stdout(), "{}", line(&hex, path))?;
    }
    Ok(0)
}

/// As sha256sum prints it: a name with a backslash or a line break is escaped, and the line says so.
fn line(hex: &str, path: &Path) -> String {
    let name = path.to_string_lossy();
    match name.contains(['\\', '\n', '\r']) {
        true => {
            let name = name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
            format!("\\{hex}  {name}")
        }
        false => format!("{hex}  {name}"),
    }
}
