//! The string keys under which the C ABI offers the choices of [`crate::options`], in one table: what a key is called,
//! means, defaults to, and does.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{json, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::ops::CheckOptions;
use crate::options::{
    CacheMode, CheckpointOptions, CreateOptions, DiskType, LogPolicy, MergeMode, MergeOptions, OpenOptions,
};

/// Everything that can be set by key.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Keys of opening.
    pub open: OpenOptions,
    /// Keys of creating; its `open` is not used, see [`Settings::create_options`].
    create: Create,
    /// Keys of merging.
    pub merge: MergeOptions,
    /// Keys of checking.
    pub check: CheckOptions,
}

#[derive(Debug, Clone, Default)]
struct Create {
    disk_type: Option<DiskType>,
    size: u64,
    block_size: u32,
    logical_sector_size: u32,
    physical_sector_size: u32,
    log_size: u32,
    parent: Option<PathBuf>,
    id: Option<Guid>,
}

impl Settings {
    /// For [`crate::ops::create`]. A parent without a type means differencing.
    pub fn create_options(&self) -> CreateOptions {
        let create = &self.create;
        let default = if create.parent.is_some() {
            DiskType::Differencing
        } else {
            DiskType::Dynamic
        };
        CreateOptions {
            disk_type: create.disk_type.unwrap_or(default),
            size: create.size,
            block_size: create.block_size,
            logical_sector_size: create.logical_sector_size,
            physical_sector_size: create.physical_sector_size,
            log_size: create.log_size,
            parent: create.parent.clone(),
            id: create.id,
            open: self.open.clone(),
        }
    }

    /// For [`crate::ops::checkpoint`].
    pub fn checkpoint_options(&self) -> CheckpointOptions {
        CheckpointOptions {
            block_size: self.create.block_size,
        }
    }

    /// Sets a key from text. Unknown keys and values that do not fit are `Argument` errors that name them.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let Some(entry) = KEYS.iter().find(|k| k.name == key) else {
            let nearest = KEYS
                .iter()
                .map(|k| (strsim::damerau_levenshtein(key, k.name), k.name))
                .min();
            let error = Error::new(ErrorKind::Argument, format!("there is no option {key:?}"));
            return Err(match nearest {
                Some((distance, name)) if distance <= 3 => error.with_hint(format!("did you mean {name:?}?")),
                _ => error.with_hint("avhdx_schema_json lists the options"),
            });
        };
        (entry.apply)(self, value).ok_or_else(|| {
            Error::new(ErrorKind::Argument, format!("option {key:?} cannot be {value:?}"))
                .with_hint(format!("{key} takes {}", entry.kind))
        })
    }

    /// Sets keys from "key=value,key=value". A value may contain "=", and with a doubled comma a comma.
    pub fn parse(&mut self, line: &str) -> Result<()> {
        for part in line.replace(",,", "\0").split(',').filter(|part| !part.is_empty()) {
            let part = part.replace('\0', ",");
            match part.split_once('=') {
                Some((key, value)) => self.set(key, value)?,
                // A bare key switches it on.
                None => self.set(&part, "on")?,
            }
        }
        Ok(())
    }
}

struct Key {
    name: &'static str,
    groups: &'static [&'static str],
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
    apply: fn(&mut Settings, &str) -> Option<()>,
}

/// Parses a size in bytes: digits, optionally followed by K, M, G or T (powers of 1024, any case, "iB" or "B" allowed).
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn parse_u32(text: &str) -> Option<u32> {
    parse_size(text)?.try_into().ok()
}

const BOOL: &str = "on or off";
const SIZE: &str = "a size in bytes, or with K, M, G or T";

macro_rules! key {
    ($name:literal, $groups:expr, $kind:expr, $default:literal, $meaning:literal, |$s:ident, $v:ident| $apply:expr) => {
        Key {
            name: $name,
            groups: $groups,
            kind: $kind,
            default: $default,
            meaning: $meaning,
            apply: |$s, $v| {
                $apply;
                Some(())
            },
        }
    };
}

const OPEN: &[&str] = &["open", "create", "merge"];
const CREATE: &[&str] = &["create"];
const MERGE: &[&str] = &["merge"];

static KEYS: &[Key] = &[
    key!(
        "read-only",
        &["open"],
        BOOL,
        "off",
        "nothing is written to any file",
        |s, v| s.open.read_only = parse_bool(v)?
    ),
    key!(
        "parents",
        &["open"],
        BOOL,
        "on",
        "off: absent data reads as zeros, and the disk is read-only",
        |s, v| s.open.parents = parse_bool(v)?
    ),
    key!(
        "search",
        OPEN,
        "directories, separated by colons",
        "",
        "directories searched for parents",
        |s, v| s.open.search = v.split(':').filter(|d| !d.is_empty()).map(PathBuf::from).collect()
    ),
    key!(
        "parent-root",
        OPEN,
        "a directory",
        "",
        "parents must lie beneath it",
        |s, v| s.open.parent_root = (!v.is_empty()).then(|| v.into())
    ),
    key!(
        "drive-map",
        OPEN,
        "PREFIX=DIR, separated by semicolons",
        "",
        "Windows drives and shares, and the directories that stand for them",
        |s, v| s.open.drive_map = parse_drives(v)?
    ),
    key!(
        "ignore-id-mismatch",
        &["open"],
        BOOL,
        "off",
        "accept parents whose identity is another; only with an explicit list of layers",
        |s, v| s.open.ignore_id_mismatch = parse_bool(v)?
    ),
    key!(
        "max-depth",
        OPEN,
        "a number from 1 to 256",
        "256",
        "most layers in a chain",
        |s, v| s.open.max_depth = v.parse().ok().filter(|d| (1..=256).contains(d))?
    ),
    key!(
        "log",
        OPEN,
        "auto, memory, replay or refuse",
        "auto",
        "a log with updates: replayed when writable and applied in memory when read-only, and so on",
        |s, v| s.open.log = match v {
            "auto" => LogPolicy::Auto,
            "memory" => LogPolicy::Memory,
            "replay" => LogPolicy::Replay,
            "refuse" => LogPolicy::Refuse,
            _ => return None,
        }
    ),
    key!(
        "lock",
        OPEN,
        BOOL,
        "on",
        "lock the files against other programs, as QEMU does",
        |s, v| s.open.lock = parse_bool(v)?
    ),
    key!(
        "lock-timeout-ms",
        OPEN,
        "milliseconds",
        "0",
        "how long to wait for a lock",
        |s, v| s.open.lock_timeout = Duration::from_millis(v.parse().ok()?)
    ),
    key!(
        "cache",
        OPEN,
        "writeback, writethrough, none or unsafe",
        "writeback",
        "writes are durable on flush; when they return; as writethrough; never by our doing",
        |s, v| s.open.cache = match v {
            "writeback" => CacheMode::Writeback,
            "writethrough" | "none" => CacheMode::Writethrough,
            "unsafe" => CacheMode::Unsafe,
            _ => return None,
        }
    ),
    key!(
        "meta-cache-size",
        OPEN,
        SIZE,
        "32M",
        "memory for metadata pages",
        |s, v| s.open.meta_cache_size = parse_size(v)?
    ),
    key!(
        "threads",
        OPEN,
        "0",
        "0",
        "threads of our own; there are none",
        |s, v| if v != "0" {
            let _ = &s;
            return None;
        }
    ),
    key!(
        "type",
        CREATE,
        "dynamic, fixed or differencing",
        "dynamic",
        "type of the new disk",
        |s, v| s.create.disk_type = Some(match v {
            "dynamic" => DiskType::Dynamic,
            "fixed" => DiskType::Fixed,
            "differencing" => DiskType::Differencing,
            _ => return None,
        })
    ),
    key!("size", CREATE, SIZE, "the parent's", "virtual size", |s, v| s
        .create
        .size =
        parse_size(v)?),
    key!(
        "block-size",
        &["create", "checkpoint"],
        "a power of two from 1M to 256M",
        "32M, or 2M for fixed and differencing",
        "size of a payload block",
        |s, v| s.create.block_size = parse_u32(v)?
    ),
    key!(
        "logical-sector-size",
        CREATE,
        "512 or 4096",
        "512, or the parent's",
        "logical sector",
        |s, v| s.create.logical_sector_size = parse_u32(v)?
    ),
    key!(
        "physical-sector-size",
        CREATE,
        "512 or 4096",
        "4096, or the parent's",
        "physical sector",
        |s, v| s.create.physical_sector_size = parse_u32(v)?
    ),
    key!(
        "log-size",
        CREATE,
        "a multiple of 1M",
        "1M",
        "size of the log",
        |s, v| s.create.log_size = parse_u32(v)?
    ),
    key!(
        "parent",
        CREATE,
        "a path",
        "",
        "parent of a differencing disk",
        |s, v| s.create.parent = (!v.is_empty()).then(|| v.into())
    ),
    key!(
        "id",
        CREATE,
        "a GUID",
        "random, or the parent's",
        "virtual disk identifier",
        |s, v| s.create.id = Some(Guid::parse(v)?)
    ),
    key!(
        "mode",
        MERGE,
        "auto, copy, reflink or consume",
        "auto",
        "how the bytes travel; consume releases the child's blocks on the way and needs next to no space",
        |s, v| s.merge.mode = match v {
            "auto" => MergeMode::Auto,
            "copy" => MergeMode::Copy,
            "reflink" => MergeMode::Reflink,
            "consume" => MergeMode::Consume,
            _ => return None,
        }
    ),
    key!(
        "rate",
        MERGE,
        SIZE,
        "0",
        "bytes per second at most; 0 for no limit",
        |s, v| s.merge.rate = parse_size(v)?
    ),
    key!("unlink", MERGE, BOOL, "on", "remove the merged files", |s, v| s
        .merge
        .unlink =
        parse_bool(v)?),
    key!(
        "relink",
        MERGE,
        "scan or off",
        "scan",
        "look for other children of the files merged",
        |s, v| s.merge.relink = match v {
            "scan" => true,
            "off" => false,
            _ => return None,
        }
    ),
    key!(
        "siblings",
        MERGE,
        "refuse or orphan",
        "refuse",
        "other disks that depend on the files merged",
        |s, v| s.merge.orphan_siblings = match v {
            "refuse" => false,
            "orphan" => true,
            _ => return None,
        }
    ),
    key!(
        "verify",
        MERGE,
        BOOL,
        "off",
        "compare before anything is removed",
        |s, v| s.merge.verify = parse_bool(v)?
    ),
    key!(
        "windows",
        &["check"],
        BOOL,
        "off",
        "also report what Windows would not have written",
        |s, v| s.check.windows = parse_bool(v)?
    ),
];

fn parse_drives(text: &str) -> Option<Vec<(String, PathBuf)>> {
    text.split(';')
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.split_once('=')
                .map(|(prefix, dir)| (prefix.to_string(), dir.into()))
        })
        .collect()
}

/// The keys of "open", "create", "checkpoint", "merge" or "check" as a JSON array of objects with name, type, default,
/// meaning and since; `None` for anything else.
pub fn schema_json(kind: &str) -> Option<String> {
    let list: Vec<Value> = KEYS
        .iter()
        .filter(|key| key.groups.contains(&kind))
        .map(|key| {
            json!({
                "name": key.name,
                "type": key.kind,
                "default": key.default,
                "meaning": key.meaning,
                "since": "1.0",
            })
        })
        .collect();
    (!list.is_empty()).then(|| Value::Array(list).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("2M", 2 << 20),
            ("1GiB", 1 << 30),
            ("3T", 3 << 40),
        ] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for text in ["", "k", "-1", "1.5G", "1X", "99999999T", "1 G"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn every_key_is_in_a_schema_and_takes_its_default() {
        let all: String = ["open", "create", "checkpoint", "merge", "check"]
            .iter()
            .map(|kind| schema_json(kind).unwrap())
            .collect();
        for key in KEYS {
            assert!(all.contains(&format!("\"{}\"", key.name)), "{}", key.name);
        }
        assert_eq!(schema_json("nothing"), None);
        let mut settings = Settings::default();
        settings
            .parse("read-only=on,search=/a:/b,drive-map=C:=/c;D:=/d,log=memory,parents=off,unlink=off,size=1G,lock")
            .unwrap();
        assert!(settings.open.read_only && !settings.open.parents && !settings.merge.unlink);
        assert_eq!(settings.open.search.len(), 2);
        assert_eq!(settings.open.drive_map[1].0, "D:");
        assert_eq!(settings.create_options().size, 1 << 30);
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let mut settings = Settings::default();
        let error = settings.set("serch", "/x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains("serch") && error.hint().unwrap().contains("search"));
        let error = settings.set("lock", "maybe").unwrap_err();
        assert!(error.to_string().contains("maybe") && error.hint().unwrap().contains("on or off"));
    }
}
