//! Finding a parent (MS-VHDX 2.2.1, 2.6.2.6.3). Identity decides, not existence: a file is the parent when its
//! DataWriteGuid is the one the child recorded, and nothing else makes it so.
//!
//! Order: the caller's resolver; relative, volume and absolute path of the locator; the same file name in the child's
//! directory and in `search`; then, by identity, any VHDX in those directories.

use std::path::Path;
use std::sync::Arc;

use super::paths;
pub(crate) use super::search::{directory, Located};
use super::search::{Format, Search};
use crate::error::Result;
use crate::format::identifier::Identifier;
use crate::format::locator::{Locator, ABSOLUTE_WIN32_PATH, RELATIVE_PATH, VOLUME_PATH};
use crate::guid::Guid;
use crate::image::front::Front;
use crate::options::{LogPolicy, OpenOptions, ParentQuery};
use crate::storage::Storage;

static VHDX: Format = Format {
    name: "VHDX",
    identity_name: "DataWriteGuid",
    is: is_vhdx,
    identity,
};

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

/// Finds the parent.
pub(crate) fn locate(wanted: &Wanted<'_>, options: &OpenOptions) -> Result<Located> {
    let accepts = |identity| wanted.accepts(identity);
    let mut search = Search::new(options, &VHDX, &accepts);
    let child_dir = directory(wanted.child);
    if let Some(resolver) = &options.resolver {
        let query = ParentQuery {
            child: wanted.child.to_path_buf(),
            linkage: wanted.linkage,
            entries: wanted.locator.entries(),
        };
        if let Some(path) = resolver(&query) {
            if let Some(found) = search.try_path("resolver", &path) {
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
            Err(why) => search.note(key, &text, why),
            Ok(path) => {
                if let Some(found) = search.try_path(key, &path) {
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
    search
        .in_directories(&child_dir, &names)
        .ok_or_else(|| search.not_found(wanted.child, &wanted.linkage.to_string()))
}

/// The DataWriteGuid of a file.
pub(crate) fn identity(storage: Arc<dyn Storage>) -> Result<Guid> {
    Ok(Front::read(storage, LogPolicy::Memory, false)?
        .current
        .header
        .data_write_guid)
}

/// Whether the file begins like a VHDX.
pub(crate) fn is_vhdx(storage: &dyn Storage) -> bool {
    let mut bytes = vec![0; 520];
    storage.read_at(&mut bytes, 0).is_ok() && Identifier::parse(&bytes).is_ok()
}
