//! Finding a parent (MS-VHDX 2.2.1, 2.6.2.6.3). Identity decides, not existence: a file is the parent when its
//! DataWriteGuid is the one the child recorded, and nothing else makes it so.
//!
//! Order: the caller's resolver; relative, volume and absolute path of the locator; the same file name in the child's
//! directory and in `search`; then, by identity, any VHDX in those directories. Every file is opened here and nowhere
//! else, for reading, beneath `parent_root` if there is one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::paths;
use crate::error::{Error, ErrorKind, Result};
use crate::format::identifier::Identifier;
use crate::format::locator::{Locator, ABSOLUTE_WIN32_PATH, RELATIVE_PATH, VOLUME_PATH};
use crate::guid::Guid;
use crate::image::front::Front;
use crate::limits;
use crate::options::{LogPolicy, OpenOptions, ParentQuery};
use crate::storage::{Access, Storage};

/// What a child asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// The child's path.
    pub(crate) child: &'a Path,
    /// Its locator.
    pub(crate) locator: &'a Locator,
    /// DataWriteGuids its parent may have.
    pub(crate) linkage: Guid,
    pub(crate) linkage2: Option<Guid>,
}

impl Wanted<'_> {
    /// Whether a file with this identity is the parent.
    pub(crate) fn accepts(&self, identity: Guid) -> bool {
        identity == self.linkage || self.linkage2 == Some(identity)
    }
}

/// A parent, open for reading.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
}

/// What was tried, for the error.
#[derive(Debug, Default)]
struct Tried {
    lines: Vec<String>,
    mismatch: Option<Guid>,
    denied: bool,
}

impl Tried {
    fn note(&mut self, what: &str, text: &str, why: impl std::fmt::Display) {
        // Debug form: a hostile path cannot put control characters on a terminal.
        self.lines.push(format!("{what} {text:?}: {why}"));
    }
}

/// Finds the parent.
pub(crate) fn locate(wanted: &Wanted<'_>, options: &OpenOptions) -> Result<Located> {
    let mut tried = Tried::default();
    let child_dir = directory(wanted.child);
    if let Some(resolver) = &options.resolver {
        let query = ParentQuery {
            child: wanted.child.to_path_buf(),
            linkage: wanted.linkage,
            entries: wanted.locator.entries(),
        };
        if let Some(path) = resolver(&query) {
            if let Some(found) = try_path(wanted, options, "resolver", &path, &mut tried) {
                return Ok(found);
            }
        }
    }
    let mut names: Vec<String> = Vec::new();
    for key in [RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_WIN32_PATH] {
        let Some(text) = wanted.locator.get(key) else { continue };
        let host = match key {
            RELATIVE_PATH => paths::relative_to_host(&text, &child_dir),
            _ => paths::absolute_to_host(&text, &options.drive_map),
        };
        match host {
            Err(why) => tried.note(key, &text, why),
            Ok(path) => {
                if let Some(found) = try_path(wanted, options, key, &path, &mut tried) {
                    return Ok(found);
                }
            }
        }
        if let Some(name) = paths::file_name(&text) {
            if !names.iter().any(|n| n == name) {
                names.push(name.to_string());
            }
        }
    }
    let directories = || std::iter::once(&child_dir).chain(&options.search);
    for directory in directories() {
        for name in &names {
            if let Some(found) = try_path(wanted, options, "by name", &directory.join(name), &mut tried) {
                return Ok(found);
            }
        }
    }
    for directory in directories() {
        if let Some(found) = by_identity(wanted, options, directory, &mut tried) {
            return Ok(found);
        }
    }
    Err(not_found(wanted, &tried))
}

fn not_found(wanted: &Wanted<'_>, tried: &Tried) -> Error {
    let list = tried.lines.join("; ");
    let linkage = wanted.linkage;
    let error = match (tried.mismatch, tried.denied) {
        (Some(found), _) => Error::new(
            ErrorKind::ParentIdMismatch,
            format!(
                "the parent was modified or is another disk: its DataWriteGuid is {found}, wanted {linkage}; tried: {list}"
            ),
        )
        .with_hint(
            "restore the parent as it was when the checkpoint was taken, or name the directory of the right file with \
             search=DIR",
        ),
        (None, true) => Error::new(
            ErrorKind::ParentAccess,
            format!("the parent cannot be opened; tried: {list}"),
        )
        .with_hint("check permissions and parent-root"),
        (None, false) => Error::new(
            ErrorKind::ParentNotFound,
            format!("the parent (DataWriteGuid {linkage}) was not found; tried: {list}"),
        )
        .with_hint(
            "name the directory it is in with search=DIR, or map Windows drives with drive-map=C:=DIR; parents=off opens \
             the file alone",
        ),
    };
    error.with_path(wanted.child)
}

/// The directory a path is in.
pub(crate) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn try_path(wanted: &Wanted<'_>, options: &OpenOptions, what: &str, path: &Path, tried: &mut Tried) -> Option<Located> {
    let text = path.to_string_lossy();
    let mut path = path.to_path_buf();
    let mut opened = open(options, &path);
    if matches!(&opened, Err(e) if e.kind() == io::ErrorKind::NotFound) {
        // Windows does not tell cases apart; this host may.
        if let Some(other) = ignoring_case(options, &path) {
            opened = open(options, &other);
            path = other;
        }
    }
    let storage = match opened {
        Ok(storage) => storage,
        Err(error) => {
            tried.denied |= matches!(
                error.raw_os_error(),
                Some(libc::EACCES | libc::EPERM | libc::EXDEV | libc::ELOOP)
            );
            tried.note(what, &text, describe(&error));
            return None;
        }
    };
    match identity(storage.clone()) {
        Ok(found) if wanted.accepts(found) => Some(Located { path, storage }),
        Ok(found) => {
            tried.mismatch = Some(found);
            tried.note(what, &text, format!("another DataWriteGuid, {found}"));
            None
        }
        Err(error) => {
            tried.note(what, &text, error.chain_text());
            None
        }
    }
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => "does not exist".into(),
        Some(libc::EINVAL) => "not a regular file".into(),
        Some(libc::EXDEV | libc::ELOOP) => "outside parent-root".into(),
        _ => error.to_string(),
    }
}

/// The one place where a parent is opened.
fn open(options: &OpenOptions, path: &Path) -> io::Result<Arc<dyn Storage>> {
    match &options.parent_root {
        Some(root) => options.file_system.open_beneath(root, path),
        None => options.file_system.open(path, Access::Read),
    }
}

/// The DataWriteGuid of a file.
pub(crate) fn identity(storage: Arc<dyn Storage>) -> Result<Guid> {
    Ok(Front::read(storage, LogPolicy::Memory, false)?
        .current
        .header
        .data_write_guid)
}

/// A path that differs from `path` only in case and exists, component by component.
fn ignoring_case(options: &OpenOptions, path: &Path) -> Option<PathBuf> {
    let fs = &options.file_system;
    let mut found = PathBuf::new();
    for component in path.components() {
        let exact = found.join(component);
        let std::path::Component::Normal(name) = component else {
            found = exact;
            continue;
        };
        let entries = fs
            .list(&directory(&exact), limits::MAX_SCANNED_ENTRIES)
            .unwrap_or_default();
        if entries.is_empty() || entries.iter().any(|e| e.file_name() == Some(name)) {
            found = exact;
            continue;
        }
        let wanted = name.to_str()?.to_lowercase();
        let other = entries
            .iter()
            .filter_map(|e| e.file_name())
            .find(|e| e.to_str().is_some_and(|e| e.to_lowercase() == wanted))?;
        found.push(other);
    }
    (found != path).then_some(found)
}

fn by_identity(wanted: &Wanted<'_>, options: &OpenOptions, dir: &Path, tried: &mut Tried) -> Option<Located> {
    let text = dir.to_string_lossy().into_owned();
    let entries = match options.file_system.list(dir, limits::MAX_SCANNED_ENTRIES) {
        Ok(entries) => entries,
        Err(error) => {
            tried.note("by identity in", &text, describe(&error));
            return None;
        }
    };
    let mut seen = 0;
    for path in entries {
        let Ok(storage) = open(options, &path) else { continue };
        if !is_vhdx(&*storage) {
            continue;
        }
        seen += 1;
        if identity(storage.clone()).is_ok_and(|found| wanted.accepts(found)) {
            return Some(Located { path, storage });
        }
    }
    tried.note("by identity in", &text, format!("none of {seen} VHDX files"));
    None
}

/// Whether the file begins like a VHDX.
pub(crate) fn is_vhdx(storage: &dyn Storage) -> bool {
    let mut bytes = vec![0; 520];
    storage.read_at(&mut bytes, 0).is_ok() && Identifier::parse(&bytes).is_ok()
}
