//! The search for a parent that every format shares: candidates are opened here and nowhere else, for reading, beneath
//! `parent_root` if there is one, and taken only when their identity is the one wanted. What was tried is kept for the
//! error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::limits;
use crate::options::OpenOptions;
use crate::storage::{Access, Storage};

/// How files of one format are told apart.
#[derive(Debug)]
pub(crate) struct Format {
    /// The format, for messages: "VHDX".
    pub(crate) name: &'static str,
    /// What decides, for messages: "DataWriteGuid".
    pub(crate) identity_name: &'static str,
    /// Whether a file looks like one of the format.
    pub(crate) is: fn(&dyn Storage) -> bool,
    /// The identity of a file.
    pub(crate) identity: fn(Arc<dyn Storage>) -> Result<Guid>,
}

/// A parent, open for reading.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
}

/// One search.
pub(crate) struct Search<'a> {
    pub(crate) options: &'a OpenOptions,
    pub(crate) format: &'static Format,
    /// Whether a file with this identity is the parent.
    pub(crate) accepts: &'a dyn Fn(Guid) -> bool,
    lines: Vec<String>,
    mismatch: Option<Guid>,
    denied: bool,
}

impl<'a> Search<'a> {
    pub(crate) fn new(options: &'a OpenOptions, format: &'static Format, accepts: &'a dyn Fn(Guid) -> bool) -> Self {
        Search {
            options,
            format,
            accepts,
            lines: Vec::new(),
            mismatch: None,
            denied: false,
        }
    }

    /// Remembers a candidate that is not the parent.
    pub(crate) fn note(&mut self, what: &str, text: &str, why: impl std::fmt::Display) {
        // Debug form: a hostile path cannot put control characters on a terminal.
        self.lines.push(format!("{what} {text:?}: {why}"));
    }

    /// Tries one path, then the same in another case.
    pub(crate) fn try_path(&mut self, what: &str, path: &Path) -> Option<Located> {
        let text = path.to_string_lossy();
        let mut path = path.to_path_buf();
        let mut opened = open(self.options, &path);
        if matches!(&opened, Err(e) if e.kind() == io::ErrorKind::NotFound) {
            // Windows does not tell cases apart; this host may.
            if let Some(other) = ignoring_case(self.options, &path) {
                opened = open(self.options, &other);
                path = other;
            }
        }
        let storage = match opened {
            Ok(storage) => storage,
            Err(error) => {
                self.denied |= matches!(
                    error.raw_os_error(),
                    Some(libc::EACCES | libc::EPERM | libc::EXDEV | libc::ELOOP)
                );
                self.note(what, &text, describe(&error));
                return None;
            }
        };
        match (self.format.identity)(storage.clone()) {
            Ok(found) if (self.accepts)(found) => Some(Located { path, storage }),
            Ok(found) => {
                self.mismatch = Some(found);
                self.note(what, &text, format!("another {}, {found}", self.format.identity_name));
                None
            }
            Err(error) => {
                self.note(what, &text, error.chain_text());
                None
            }
        }
    }

    /// Tries these names in the child's directory and in `search`, then every file there by its identity.
    pub(crate) fn in_directories(&mut self, child_dir: &Path, names: &[String]) -> Option<Located> {
        let options = self.options;
        let directories = || std::iter::once(child_dir).chain(options.search.iter().map(PathBuf::as_path));
        for directory in directories() {
            for name in names {
                if let Some(found) = self.try_path("by name", &directory.join(name)) {
                    return Some(found);
                }
            }
        }
        directories().find_map(|directory| self.by_identity(directory))
    }

    fn by_identity(&mut self, dir: &Path) -> Option<Located> {
        let text = dir.to_string_lossy().into_owned();
        let entries = match self.options.file_system.list(dir, limits::MAX_SCANNED_ENTRIES) {
            Ok(entries) => entries,
            Err(error) => {
                self.note("by identity in", &text, describe(&error));
                return None;
            }
        };
        let mut seen = 0;
        for path in entries {
            let Ok(storage) = open(self.options, &path) else {
                continue;
            };
            if !(self.format.is)(&*storage) {
                continue;
            }
            seen += 1;
            if (self.format.identity)(storage.clone()).is_ok_and(|found| (self.accepts)(found)) {
                return Some(Located { path, storage });
            }
        }
        let name = self.format.name;
        self.note("by identity in", &text, format!("none of {seen} {name} files"));
        None
    }

    /// The error of a search without result; `wanted` says what the child asks for.
    pub(crate) fn not_found(&self, child: &Path, wanted: &str) -> Error {
        let list = self.lines.join("; ");
        let identity = self.format.identity_name;
        let error = match (self.mismatch, self.denied) {
            (Some(found), _) => Error::new(
                ErrorKind::ParentIdMismatch,
                format!(
                    "the parent was modified or is another disk: its {identity} is {found}, wanted {wanted}; tried: {list}"
                ),
            )
            .with_hint(
                "restore the parent as it was when the checkpoint was taken, or name the directory of the right file \
                 with search=DIR",
            ),
            (None, true) => Error::new(
                ErrorKind::ParentAccess,
                format!("the parent cannot be opened; tried: {list}"),
            )
            .with_hint("check permissions and parent-root"),
            (None, false) => Error::new(
                ErrorKind::ParentNotFound,
                format!("the parent ({identity} {wanted}) was not found; tried: {list}"),
            )
            .with_hint(
                "name the directory it is in with search=DIR, or map Windows drives with drive-map=C:=DIR; parents=off \
                 opens the file alone",
            ),
        };
        error.with_path(child)
    }
}

/// The directory a path is in.
pub(crate) fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
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
