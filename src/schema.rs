//! Options by name: one table from which the C ABI, the nbdkit plugin and the command line take their keys.
//!
//! A [`Key`] has a name, a type, a default in words, a meaning and the version it came with; [`Settings`] holds the
//! typed options it ends up in. Values arrive as text (paths as the host's bytes), are checked when they are set, and
//! are applied in the order in which they were set.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::limits;
use crate::ops::tree::TreeOptions;
use crate::ops::{CheckOptions, CompareOptions, DigestAlgorithm, DigestOptions, RepairOptions};
use crate::options::OpenOptions;
use crate::options::{CacheMode, CheckpointOptions, CreateOptions, DiskType, LogPolicy, MergeMode, MergeOptions};
use crate::options::{CompactMode, CompactOptions, ResizeOptions};
use crate::options::{ConvertOptions, CopyMode, ImageFormat, MigrateOptions};
use crate::options::{DeleteInto, DeleteOptions, RebaseOptions, ReparentOptions, RevertOptions};

/// A group of options: what one operation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Opening a disk; also where the other operations look for files.
    Open,
    /// Creating a disk.
    Create,
    /// Taking a checkpoint.
    Checkpoint,
    /// Merging.
    Merge,
    /// Checking a file.
    Check,
    /// An operation on layers of an open disk, in steps.
    Job,
    /// Scanning directories.
    Tree,
    /// Converting to another format or type.
    Convert,
    /// Migrating from VHD.
    Migrate,
    /// Going back to a checkpoint.
    Revert,
    /// Deleting a layer.
    Delete,
    /// Naming another parent.
    Reparent,
    /// Changing the parent, content kept.
    Rebase,
    /// Doing without parents.
    Detach,
    /// Compacting.
    Compact,
    /// Changing the size.
    Resize,
    /// Comparing two disks.
    Compare,
    /// Computing a checksum.
    Digest,
    /// Mending a file.
    Repair,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Kind] = &[
        Kind::Open,
        Kind::Create,
        Kind::Checkpoint,
        Kind::Merge,
        Kind::Check,
        Kind::Job,
        Kind::Tree,
        Kind::Convert,
        Kind::Migrate,
        Kind::Revert,
        Kind::Delete,
        Kind::Reparent,
        Kind::Rebase,
        Kind::Detach,
        Kind::Compact,
        Kind::Resize,
        Kind::Compare,
        Kind::Digest,
        Kind::Repair,
    ];

    /// The name under which [`schema_json`] knows it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Create => "create",
            Kind::Checkpoint => "checkpoint",
            Kind::Merge => "merge",
            Kind::Check => "check",
            Kind::Job => "job",
            Kind::Tree => "tree",
            Kind::Convert => "convert",
            Kind::Migrate => "migrate",
            Kind::Revert => "revert",
            Kind::Delete => "delete",
            Kind::Reparent => "reparent",
            Kind::Rebase => "rebase",
            Kind::Detach => "detach",
            Kind::Compact => "compact",
            Kind::Resize => "resize",
            Kind::Compare => "compare",
            Kind::Digest => "digest",
            Kind::Repair => "repair",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Its keys, in the order in which they are documented.
    pub fn keys(self) -> &'static [Key] {
        match self {
            Kind::Open => OPEN,
            Kind::Create => CREATE,
            Kind::Checkpoint => CHECKPOINT,
            Kind::Merge => MERGE,
            Kind::Check => CHECK,
            Kind::Job => JOB,
            Kind::Tree => TREE,
            Kind::Convert => CONVERT,
            Kind::Migrate => MIGRATE,
            Kind::Revert => REVERT,
            Kind::Delete => DELETE,
            Kind::Reparent => REPARENT,
            Kind::Rebase | Kind::Detach => REBASE,
            Kind::Compact => COMPACT,
            Kind::Resize => RESIZE,
            Kind::Compare => COMPARE,
            Kind::Digest => DIGEST,
            Kind::Repair => REPAIR,
        }
    }
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueType {
    /// on/off, true/false, yes/no, 1/0.
    Bool,
    /// A number of bytes; K, M, G and T multiply by powers of 1024.
    Size,
    /// A decimal number.
    Number,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path of the host, as bytes.
    Path,
    /// Paths separated by ':'.
    PathList,
    /// WINDOWS=DIR pairs separated by ';'.
    DriveMap,
    /// A GUID, with or without braces.
    Guid,
}

impl ValueType {
    /// The name in the schema.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::Bool => "bool",
            ValueType::Size => "size",
            ValueType::Number => "number",
            ValueType::Choice(_) => "choice",
            ValueType::Path => "path",
            ValueType::PathList => "path-list",
            ValueType::DriveMap => "drive-map",
            ValueType::Guid => "guid",
        }
    }
}

/// The typed options that keys end up in.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct Settings {
    /// [`Kind::Open`].
    pub open: OpenOptions,
    /// [`Kind::Create`]; its `open` is [`Settings::open`] when made by [`Settings::from_entries`].
    pub create: CreateOptions,
    /// [`Kind::Checkpoint`].
    pub checkpoint: CheckpointOptions,
    /// [`Kind::Merge`].
    pub merge: MergeOptions,
    /// [`Kind::Check`].
    pub check: CheckOptions,
    /// [`Kind::Job`].
    pub job: JobOptions,
    /// [`Kind::Tree`].
    pub tree: TreeOptions,
    /// [`Kind::Convert`].
    pub convert: ConvertOptions,
    /// [`Kind::Migrate`]; its `convert` is [`Settings::convert`] when made by [`Settings::from_entries`].
    pub migrate: MigrateOptions,
    /// [`Kind::Revert`].
    pub revert: RevertOptions,
    /// [`Kind::Delete`].
    pub delete: DeleteOptions,
    /// [`Kind::Reparent`].
    pub reparent: ReparentOptions,
    /// [`Kind::Rebase`] and [`Kind::Detach`].
    pub rebase: RebaseOptions,
    /// [`Kind::Compact`].
    pub compact: CompactOptions,
    /// [`Kind::Resize`].
    pub resize: ResizeOptions,
    /// [`Kind::Compare`].
    pub compare: CompareOptions,
    /// [`Kind::Digest`].
    pub digest: DigestOptions,
    /// [`Kind::Repair`].
    pub repair: RepairOptions,
}

/// What a job is about, where its function takes it as an argument.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct JobOptions {
    /// The uppermost layer merged, or the layer deleted.
    pub top: Option<usize>,
    /// The layer merged into.
    pub base: Option<usize>,
    /// The new parent.
    pub onto: Option<PathBuf>,
    /// The new file.
    pub out: Option<PathBuf>,
    /// The checksum.
    pub algorithm: Option<DigestAlgorithm>,
}

impl Settings {
    /// Defaults with `entries` applied in order. A key that none of `kinds` has is an error; where two have it, the
    /// first takes it.
    pub fn from_entries<'a>(
        kinds: &[Kind],
        entries: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
    ) -> Result<Settings> {
        let mut settings = Settings::default();
        for (name, value) in entries {
            find(kinds, name)?.apply(&mut settings, value)?;
        }
        settings.create.open = settings.open.clone();
        settings.migrate.convert = settings.convert.clone();
        Ok(settings)
    }
}

type Apply = fn(&mut Settings, &OsStr) -> Result<(), String>;

/// One option.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Key {
    /// The name, in lower case with hyphens.
    pub name: &'static str,
    /// What values look like.
    pub value: ValueType,
    /// The default, in words or as a value.
    pub default: &'static str,
    /// One sentence for people.
    pub meaning: &'static str,
    /// The version it came with.
    pub since: &'static str,
    apply: Apply,
}

impl Key {
    /// Sets the option. The error names the key, the value and what would be accepted.
    pub fn apply(&self, settings: &mut Settings, value: &OsStr) -> Result<()> {
        (self.apply)(settings, value).map_err(|wanted| {
            Error::new(
                ErrorKind::Argument,
                format!("option '{}': {value:?} is not {wanted}", self.name),
            )
            .with_hint(format!("{}: {}", self.name, self.meaning))
        })
    }

    /// Whether a value would be accepted.
    pub fn check(&self, value: &OsStr) -> Result<()> {
        self.apply(&mut Settings::default(), value)
    }
}

/// The key of this name in any of `kinds`. The error names the nearest key there is, or the operation that has it.
pub fn find(kinds: &[Kind], name: &str) -> Result<&'static Key> {
    let known = || kinds.iter().flat_map(|kind| kind.keys());
    if let Some(key) = known().find(|key| key.name == name) {
        return Ok(key);
    }
    let here: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let owners: Vec<&str> = Kind::ALL
        .iter()
        .filter(|kind| kind.keys().iter().any(|key| key.name == name))
        .map(|kind| kind.name())
        .collect();
    if !owners.is_empty() {
        let message = format!(
            "the option '{name}' is for {}, not for {}",
            owners.join(", "),
            here.join(", ")
        );
        return Err(Error::new(ErrorKind::Argument, message).with_hint("leave it out here"));
    }
    let nearest = known().min_by_key(|key| strsim::damerau_levenshtein(key.name, name));
    let error = Error::new(ErrorKind::Argument, format!("there is no option {name:?}"));
    Err(match nearest {
        Some(key) => error.with_hint(format!("the nearest is '{}': {}", key.name, key.meaning)),
        None => error,
    })
}

/// Whether an operation would accept the value under this name. Operations may share a name and differ in what they
/// take: the error is that of the first, and its hint names the others.
pub fn check(name: &str, value: &OsStr) -> Result<()> {
    let first = find(Kind::ALL, name)?;
    let mut others = Vec::new();
    for kind in Kind::ALL {
        let Some(key) = kind.keys().iter().find(|key| key.name == name) else {
            continue;
        };
        match key.check(value) {
            Ok(()) => return Ok(()),
            Err(error) => others.push(format!("for {}: {error}", kind.name())),
        }
    }
    first.check(value).map_err(|error| match others.len() {
        0 | 1 => error,
        _ => error.with_hint(others.join("; ")),
    })
}

/// Splits "key=value,key=value". A comma in a value is written twice; a key without '=' means "on".
pub fn parse_line(line: &OsStr) -> Result<Vec<(String, OsString)>> {
    let mut pairs: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = line.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.peek() == Some(&b',') => {
                bytes.next();
                if let Some(pair) = pairs.last_mut() {
                    pair.push(b',');
                }
            }
            b',' => pairs.push(Vec::new()),
            other => {
                if let Some(pair) = pairs.last_mut() {
                    pair.push(other);
                }
            }
        }
    }
    pairs
        .into_iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = match pair.iter().position(|&byte| byte == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (&pair[..], &b"on"[..]),
            };
            let name = std::str::from_utf8(name)
                .ok()
                .filter(|name| !name.is_empty())
                .ok_or_else(|| {
                    let text = String::from_utf8_lossy(&pair).into_owned();
                    Error::new(ErrorKind::Argument, format!("{text:?} is not of the form key=value"))
                })?;
            Ok((name.to_string(), OsStr::from_bytes(value).to_os_string()))
        })
        .collect()
}

/// A number of bytes: decimal digits and K, M, G, T, P or E (powers of 1024; either case; "iB" or "B" may follow).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].to_ascii_lowercase();
    let unit = unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// on, true, yes, 1; off, false, no, 0; in either case.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// The keys of a kind as a JSON array: name, type, choices, default, meaning, since.
pub fn schema_json(kind: Kind) -> String {
    let keys: Vec<_> = kind
        .keys()
        .iter()
        .map(|key| {
            let mut entry = json!({
                "name": key.name,
                "type": key.value.name(),
                "default": key.default,
                "meaning": key.meaning,
                "since": key.since,
            });
            if let ValueType::Choice(words) = key.value {
                entry["choices"] = json!(words);
            }
            entry
        })
        .collect();
    json!(keys).to_string()
}

// ---- values ----

fn text(value: &OsStr) -> Result<&str, String> {
    value.to_str().ok_or_else(|| "UTF-8".to_string())
}

fn boolean(value: &OsStr) -> Result<bool, String> {
    parse_bool(text(value)?).ok_or_else(|| "on or off".to_string())
}

fn size(value: &OsStr) -> Result<u64, String> {
    parse_size(text(value)?).ok_or_else(|| "a size such as 4096, 64k, 2M, 1G or 1T".to_string())
}

fn size32(value: &OsStr) -> Result<u32, String> {
    u32::try_from(size(value)?).map_err(|_| "a size below 4G".to_string())
}

fn number(value: &OsStr, most: u64) -> Result<u64, String> {
    let number = text(value)?.parse().ok().filter(|&number: &u64| number <= most);
    number.ok_or_else(|| match most {
        u64::MAX => "a number".to_string(),
        _ => format!("a number up to {most}"),
    })
}

fn path(value: &OsStr) -> Result<PathBuf, String> {
    match value.is_empty() {
        true => Err("a path".to_string()),
        false => Ok(PathBuf::from(value)),
    }
}

fn paths(value: &OsStr) -> Result<Vec<PathBuf>, String> {
    let parts = value.as_bytes().split(|&byte| byte == b':');
    Ok(parts
        .filter(|part| !part.is_empty())
        .map(|part| PathBuf::from(OsStr::from_bytes(part)))
        .collect())
}

fn drive_map(value: &OsStr) -> Result<Vec<(String, PathBuf)>, String> {
    let wanted = || r"WINDOWS=DIR pairs such as C:=/mnt/c;\\server\share=/mnt/s".to_string();
    let pairs = value.as_bytes().split(|&byte| byte == b';');
    pairs
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let at = pair.iter().position(|&byte| byte == b'=').ok_or_else(wanted)?;
            let (from, to) = (&pair[..at], &pair[at + 1..]);
            let from = std::str::from_utf8(from).map_err(|_| wanted())?;
            if from.is_empty() || to.is_empty() {
                return Err(wanted());
            }
            Ok((from.to_string(), PathBuf::from(OsStr::from_bytes(to))))
        })
        .collect()
}

fn guid(value: &OsStr) -> Result<Guid, String> {
    Guid::parse(text(value)?).ok_or_else(|| "a GUID such as 12345678-9abc-def0-1234-56789abcdef0".to_string())
}

fn choice<T: Copy>(value: &OsStr, words: &[(&str, T)]) -> Result<T, String> {
    let word = text(value)?;
    let found = words.iter().find(|(name, _)| *name == word);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        format!("one of {}", names.join(", "))
    })
}

// ---- the table ----

macro_rules! keys {
    ($($name:literal, $value:expr, $default:literal, $meaning:literal, $($field:ident).+ = |$v:ident| $parse:expr;)*) => {
        &[$(Key {
            name: $name,
            value: $value,
            default: $default,
            meaning: $meaning,
            since: "1.0",
            apply: |settings, $v| {
                settings.$($field).+ = $parse?;
                Ok(())
            },
        },)*]
    };
}

const LOG: &[(&str, LogPolicy)] = &[
    ("auto", LogPolicy::Auto),
    ("memory", LogPolicy::Memory),
    ("replay", LogPolicy::Replay),
    ("refuse", LogPolicy::Refuse),
];

const CACHE: &[(&str, CacheMode)] = &[
    ("writeback", CacheMode::Writeback),
    ("writethrough", CacheMode::Writethrough),
    ("none", CacheMode::None),
    ("unsafe", CacheMode::Unsafe),
];

const TYPE: &[(&str, DiskType)] = &[
    ("dynamic", DiskType::Dynamic),
    ("fixed", DiskType::Fixed),
    ("differencing", DiskType::Differencing),
];

const MODE: &[(&str, MergeMode)] = &[
    ("auto", MergeMode::Auto),
    ("copy", MergeMode::Copy),
    ("reflink", MergeMode::Reflink),
    ("consume", MergeMode::Consume),
];

const COPY_MODE: &[(&str, CopyMode)] = &[
    ("auto", CopyMode::Auto),
    ("copy", CopyMode::Copy),
    ("reflink", CopyMode::Reflink),
];

const INTO: &[(&str, DeleteInto)] = &[
    ("auto", DeleteInto::Auto),
    ("parent", DeleteInto::Parent),
    ("children", DeleteInto::Children),
];

const COMPACT_MODE: &[(&str, CompactMode)] = &[
    ("full", CompactMode::Full),
    ("quick", CompactMode::Quick),
    ("prezeroed", CompactMode::Prezeroed),
];

static OPEN: &[Key] = keys! {
    "read-only", ValueType::Bool, "off", "open for reading; no byte of any file is written",
        open.read_only = |v| boolean(v);
    "parents", ValueType::Bool, "on", "open the parents; off reads absent data as zeros, for inspection",
        open.parents = |v| boolean(v);
    "search", ValueType::PathList, "", "directories searched for parents, by name and then by identity",
        open.search = |v| paths(v);
    "parent-root", ValueType::Path, "", "parents must lie beneath this directory, however links lead",
        open.parent_root = |v| path(v).map(Some);
    "drive-map", ValueType::DriveMap, "", "host directories that stand for Windows drives and shares",
        open.drive_map = |v| drive_map(v);
    "ignore-id-mismatch", ValueType::Bool, "off", "accept modified parents; only with an explicit list of layers",
        open.ignore_id_mismatch = |v| boolean(v);
    "max-depth", ValueType::Number, "256", "most layers in a chain, at most 256",
        open.max_depth = |v| number(v, limits::MAX_CHAIN_DEPTH as u64).map(|n| n.max(1) as usize);
    "log", ValueType::Choice(&["auto", "memory", "replay", "refuse"]), "auto",
        "what to do with a dirty log: auto replays it into a writable file and in memory for a read-only one",
        open.log = |v| choice(v, LOG);
    "lock", ValueType::Bool, "on", "lock the files against other programs, as QEMU does",
        open.lock = |v| boolean(v);
    "lock-timeout-ms", ValueType::Number, "0", "milliseconds to wait for a lock",
        open.lock_timeout = |v| number(v, 86_400_000).map(Duration::from_millis);
    "cache", ValueType::Choice(&["writeback", "writethrough", "none", "unsafe"]), "writeback",
        "when writes become durable: on flush, before each returns, or never for sure; none: on flush, and around the page cache",
        open.cache = |v| choice(v, CACHE);
    "meta-cache-size", ValueType::Size, "32M", "memory for block tables and bitmaps of the chain",
        open.meta_cache_size = |v| size(v);
};

static CREATE: &[Key] = keys! {
    "type", ValueType::Choice(&["dynamic", "fixed", "differencing"]), "dynamic", "the type of virtual disk",
        create.disk_type = |v| choice(v, TYPE);
    "size", ValueType::Size, "the parent's", "virtual size in bytes, a multiple of the logical sector size, at most 64T",
        create.size = |v| size(v);
    "block-size", ValueType::Size, "32M dynamic, 2M other", "payload block size, a power of two from 1M to 256M",
        create.block_size = |v| size32(v);
    "logical-sector-size", ValueType::Size, "512, or the parent's", "512 or 4096",
        create.logical_sector_size = |v| size32(v);
    "physical-sector-size", ValueType::Size, "4096, or the parent's", "512 or 4096",
        create.physical_sector_size = |v| size32(v);
    "log-size", ValueType::Size, "1M", "log size, a multiple of 1M",
        create.log_size = |v| size32(v);
    "parent", ValueType::Path, "", "the parent of a differencing disk",
        create.parent = |v| path(v).map(Some);
    "id", ValueType::Guid, "random, or the parent's", "virtual disk ID (SCSI page 83)",
        create.id = |v| guid(v).map(Some);
};

static CHECKPOINT: &[Key] = keys! {
    "block-size", ValueType::Size, "2M", "payload block size of the new leaf, a power of two from 1M to 256M",
        checkpoint.block_size = |v| size32(v);
};

static MERGE: &[Key] = keys! {
    "mode", ValueType::Choice(&["auto", "copy", "reflink", "consume"]), "auto",
        "how bytes travel: copy keeps the child whole, reflink shares extents, consume frees the child as it goes",
        merge.mode = |v| choice(v, MODE);
    "rate", ValueType::Size, "0", "bytes per second at most; 0 for no limit",
        merge.rate = |v| size(v);
    "threads", ValueType::Number, "0", "threads started to copy, at most 64; 0: the caller's copies; not with mode=consume",
        merge.threads = |v| number(v, 64).map(|n| n as usize);
    "unlink", ValueType::Bool, "on", "remove the merged files when done",
        merge.unlink = |v| boolean(v);
    "relink", ValueType::Choice(&["scan", "off"]), "scan",
        "look in the directories of the files for other children, and point those of the merged layer to the target",
        merge.relink = |v| choice(v, &[("scan", true), ("off", false)]);
    "siblings", ValueType::Choice(&["refuse", "orphan"]), "refuse",
        "what to do when other disks depend on the target: refuse, or go on and make them unusable",
        merge.orphan_siblings = |v| choice(v, &[("refuse", false), ("orphan", true)]);
    "verify", ValueType::Bool, "off", "read the target back and compare before anything is removed",
        merge.verify = |v| boolean(v);
};

static CHECK: &[Key] = keys! {
    "windows", ValueType::Bool, "off", "also report what Windows would not have written",
        check.windows = |v| boolean(v);
};

static JOB: &[Key] = keys! {
    "top", ValueType::Number, "0", "merge: the uppermost layer merged, delete: the layer deleted, digest: that of which; 0 is the leaf",
        job.top = |v| number(v, u64::from(u32::MAX)).map(|n| Some(n as usize));
    "base", ValueType::Number, "top + 1", "merge: the layer merged into",
        job.base = |v| number(v, u64::from(u32::MAX)).map(|n| Some(n as usize));
    "onto", ValueType::Path, "", "rebase: the new parent; needed there",
        job.onto = |v| path(v).map(Some);
    "out", ValueType::Path, "", "convert: the new file; needed there",
        job.out = |v| path(v).map(Some);
    "algorithm", ValueType::Choice(&["sha256", "sha512"]), "sha256", "digest: the checksum",
        job.algorithm = |v| choice(v, ALGORITHM).map(Some);
};

static TREE: &[Key] = keys! {
    "recurse", ValueType::Bool, "on", "look into the directories of the directories too",
        tree.recurse = |v| boolean(v);
    "outside", ValueType::Bool, "on", "follow recorded paths to parents outside the directories",
        tree.outside = |v| boolean(v);
};

const ALGORITHM: &[(&str, DigestAlgorithm)] =
    &[("sha256", DigestAlgorithm::Sha256), ("sha512", DigestAlgorithm::Sha512)];

const FORMAT: &[(&str, Option<ImageFormat>)] = &[
    ("raw", Some(ImageFormat::Raw)),
    ("vhdx", Some(ImageFormat::Vhdx)),
    ("vhd", Some(ImageFormat::Vhd)),
];

static CONVERT: &[Key] = keys! {
    "to", ValueType::Choice(&["raw", "vhdx", "vhd"]), "what the new name ends in, or raw (migrate: vhdx)",
        "the format of the new file",
        convert.to = |v| choice(v, FORMAT);
    "type", ValueType::Choice(&["dynamic", "fixed"]), "dynamic", "the type of the new disk",
        convert.disk_type = |v| choice(v, &TYPE[..2]);
    "block-size", ValueType::Size, "32M dynamic VHDX, 2M other",
        "block size of the new disk, a power of two from 1M (VHD: 512k) to 256M",
        convert.block_size = |v| size32(v);
    "logical-sector-size", ValueType::Size, "the source's", "512 or 4096, for a VHDX",
        convert.logical_sector_size = |v| size32(v);
    "layer", ValueType::Number, "0", "write the disk as of this layer; 0 is the leaf",
        convert.layer = |v| number(v, 255).map(|layer| layer as usize);
    "parent", ValueType::Path, "", "make a differencing VHDX on this disk that holds only what differs from it",
        convert.parent = |v| path(v).map(Some);
    "mode", ValueType::Choice(&["auto", "copy", "reflink"]), "auto",
        "how bytes get there: copy leaves zeros out, reflink shares extents, auto does that where it can",
        convert.mode = |v| choice(v, COPY_MODE);
    "rate", ValueType::Size, "0", "bytes read per second at most; 0 for no limit",
        convert.rate = |v| size(v);
    "threads", ValueType::Number, "0", "threads started to read, at most 64; 0: the caller's reads",
        convert.threads = |v| number(v, 64).map(|n| n as usize);
};

static MIGRATE: &[Key] = keys! {
    "chain", ValueType::Bool, "off", "keep the chain: a VHDX for each VHD, instead of one that holds everything",
        migrate.chain = |v| boolean(v);
};

static REVERT: &[Key] = keys! {
    "unlink", ValueType::Bool, "off", "remove the files of the state left behind that no other disk depends on",
        revert.unlink = |v| boolean(v);
    "block-size", ValueType::Size, "2M", "payload block size of the new leaf, a power of two from 1M to 256M",
        revert.block_size = |v| size32(v);
};

static DELETE: &[Key] = keys! {
    "into", ValueType::Choice(&["auto", "parent", "children"]), "auto",
        "where the content goes: into the parent, whose own state is then gone, or into each child; auto: into the parent \
         unless other disks depend on it",
        delete.into = |v| choice(v, INTO);
    "mode", ValueType::Choice(&["auto", "copy", "reflink", "consume"]), "auto",
        "how bytes travel into the parent: copy keeps the file whole, reflink shares extents, consume frees it as it goes",
        delete.mode = |v| choice(v, MODE);
    "rate", ValueType::Size, "0", "bytes per second at most; 0 for no limit",
        delete.rate = |v| size(v);
    "verify", ValueType::Bool, "off", "read the parent back and compare before the file is removed",
        delete.verify = |v| boolean(v);
};

static REPARENT: &[Key] = keys! {
    "ignore-id-mismatch", ValueType::Bool, "off",
        "accept a parent with another data write GUID: its content is known to be right",
        reparent.ignore_id_mismatch = |v| boolean(v);
};

static REBASE: &[Key] = keys! {
    "rate", ValueType::Size, "0", "bytes per second at most; 0 for no limit",
        rebase.rate = |v| size(v);
};

static COMPACT: &[Key] = keys! {
    "mode", ValueType::Choice(&["full", "quick", "prezeroed"]), "full",
        "full reads every block and moves them together, quick reads none, prezeroed moves none",
        compact.mode = |v| choice(v, COMPACT_MODE);
    "rate", ValueType::Size, "0", "bytes per second at most; 0 for no limit",
        compact.rate = |v| size(v);
};

static RESIZE: &[Key] = keys! {
    "unsafe", ValueType::Bool, "off", "cut off what is behind the new end, partitions too",
        resize.allow_loss = |v| boolean(v);
};

static COMPARE: &[Key] = keys! {
    "rate", ValueType::Size, "0", "bytes read of each disk per second at most; 0 for no limit",
        compare.rate = |v| size(v);
};

static DIGEST: &[Key] = keys! {
    "rate", ValueType::Size, "0", "bytes read per second at most; 0 for no limit",
        digest.rate = |v| size(v);
};

static REPAIR: &[Key] = keys! {
    "dry-run", ValueType::Bool, "off", "only tell what would be done; nothing is written",
        repair.dry_run = |v| boolean(v);
    "undo", ValueType::Path, "the file's, and .undo", "where the undo file goes; an existing file is never replaced",
        repair.undo = |v| path(v).map(Some);
    "clear-log", ValueType::Bool, "off", "empty a log without a valid entry; updates that were only in it are lost",
        repair.clear_log = |v| boolean(v);
    "cut-tail", ValueType::Bool, "off", "cut the file behind its last structure",
        repair.cut_tail = |v| boolean(v);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn os(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn sizes_take_binary_suffixes_and_refuse_overflow() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("2M", 2 << 20),
            ("1G", 1 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        assert_eq!(parse_size("4KiB"), Some(4096));
        assert_eq!(parse_size("4kb"), Some(4096));
        for text in [
            "",
            "k",
            "-1",
            "1.5G",
            "1X",
            "1 M",
            "16E",
            "18446744073709551616",
            "0x10",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = find(&[Kind::Open], "readonly").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains("readonly"), "{error}");
        assert!(error.hint().unwrap().contains("'read-only'"), "{error:?}");
    }

    #[test]
    fn key_of_another_operation_says_whose_it_is() {
        let error = find(&[Kind::Merge], "read-only").unwrap_err();
        assert!(error.to_string().contains("is for open, not for merge"), "{error}");
    }

    #[test]
    fn refused_value_names_key_value_and_choices() {
        let error = find(&[Kind::Open], "log").unwrap().check(os("later")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "option 'log': \"later\" is not one of auto, memory, replay, refuse"
        );
    }

    #[test]
    fn a_value_that_any_operation_takes_under_the_name_is_accepted() {
        check("mode", os("quick")).unwrap();
        check("mode", os("consume")).unwrap();
        let error = check("mode", os("never")).unwrap_err();
        assert!(error.hint().unwrap().contains("for compact"), "{error:?}");
        assert!(find(&[Kind::Merge], "mode").unwrap().check(os("quick")).is_err());
    }

    #[test]
    fn line_splits_at_single_commas() {
        let pairs = parse_line(os(r"read-only,search=/a:/b,,c,drive-map=C:=/mnt/c;\\s\h=/s,")).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(
            pairs,
            [
                ("read-only", "on"),
                ("search", "/a:/b,c"),
                ("drive-map", r"C:=/mnt/c;\\s\h=/s")
            ]
        );
        assert!(parse_line(os("=x")).is_err());
    }

    #[test]
    fn entries_reach_the_typed_options() {
        let entries = [
            ("type", "differencing"),
            ("parent", "/p/base.vhdx"),
            ("block-size", "1M"),
            ("search", "/a:/b"),
            ("drive-map", r"C:=/mnt/c;\\s\h=/s"),
            ("lock-timeout-ms", "250"),
        ];
        let entries = entries.iter().map(|(k, v)| (*k, os(v)));
        let settings = Settings::from_entries(&[Kind::Create, Kind::Open], entries).unwrap();
        assert_eq!(settings.create.disk_type, DiskType::Differencing);
        assert_eq!(settings.create.block_size, 1 << 20);
        assert_eq!(settings.create.open.search, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(settings.open.drive_map[1], (r"\\s\h".to_string(), PathBuf::from("/s")));
        assert_eq!(settings.open.lock_timeout, Duration::from_millis(250));
    }

    #[test]
    fn every_default_that_is_a_value_is_accepted_and_changes_nothing() {
        for kind in Kind::ALL {
            for key in kind
                .keys()
                .iter()
                .filter(|key| !key.default.is_empty() && !key.default.contains(' '))
            {
                let mut settings = Settings::default();
                key.apply(&mut settings, os(key.default))
                    .unwrap_or_else(|e| panic!("{}: {e}", key.name));
                let changed = format!("{:?}{:?}{:?}", settings.merge, settings.check, settings.open);
                let plain = Settings::default();
                assert_eq!(
                    changed,
                    format!("{:?}{:?}{:?}", plain.merge, plain.check, plain.open),
                    "{}",
                    key.name
                );
            }
        }
    }

    #[test]
    fn schema_is_json_with_every_key() {
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            let parsed: serde_json::Value = serde_json::from_str(&schema_json(kind)).unwrap();
            let names: Vec<_> = parsed
                .as_array()
                .unwrap()
                .iter()
                .map(|k| k["name"].as_str().unwrap())
                .collect();
            let wanted: Vec<_> = kind.keys().iter().map(|key| key.name).collect();
            assert_eq!(names, wanted);
            for key in kind.keys() {
                assert!(!key.meaning.is_empty() && !key.since.is_empty(), "{}", key.name);
            }
        }
        assert_eq!(Kind::from_name("nonsense"), None);
    }
}
