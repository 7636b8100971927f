//! Mending one file: what can be put right without guessing, and nothing else (docs/durability.md "Repair").
//!
//! ```text
//!   1  the mends are made on a staged file, by the code that changes files anyway
//!   2  the staged file is checked: what check finds in the file and no more in this is mended
//!   3  the undo file: what will be overwritten, durable
//!   4  the staged changes, in their order and with their barriers
//! ```
//!
//! The content of the disk, and so its DataWriteGuid, never changes; no payload is dropped and no parent guessed.

mod bat;
mod linkage;
mod staged;
mod undo;

pub use undo::undo;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::{check_storage, CheckOptions, CheckReport, Finding, Severity};
use crate::chain::open;
use crate::error::{Defect, Error, ErrorKind, IoContext, PathContext, Result, Rule};
use crate::format::region;
use crate::guid::Guid;
use crate::image::commit::pages_of;
use crate::image::front::Front;
use crate::image::{headers, Image, Shared, WriteMode};
use crate::limits;
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, LockMode, Storage};

use staged::Staged;

/// What to mend, and how.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RepairOptions {
    /// Only tell what would be done; nothing is written.
    pub dry_run: bool,
    /// Where the undo file goes; next to the file, with ".undo" behind its name, if `None`.
    pub undo: Option<PathBuf>,
    /// Empty a log that the header names and that holds no valid entry, if every other rule is kept then. Updates that
    /// were only in that log are lost.
    pub clear_log: bool,
    /// Cut the file behind its last structure, if no broken rule is left.
    pub cut_tail: bool,
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RepairReport {
    /// The file as it is afterwards, and how many findings were mended.
    pub check: CheckReport,
    /// The undo file; `None` when nothing was changed.
    pub undo: Option<PathBuf>,
}

/// Mends the file at `path`. Each finding goes to `report`, marked as repaired or not, after the work is done. What
/// cannot be mended stays a finding and is not a failure. Before the first byte changes, what will be overwritten is
/// saved in an undo file ([`undo`]); where nothing can be mended, nothing is written at all.
///
/// A cut or failed repair leaves a file that can be repaired again (with another undo file), or undone. Durable on
/// return.
pub fn repair(
    path: &Path,
    open: &OpenOptions,
    options: &RepairOptions,
    report: &mut dyn FnMut(&Finding),
) -> Result<RepairReport> {
    let (access, lock) = match options.dry_run {
        true => (Access::Read, LockMode::Read),
        false => (Access::Write, LockMode::Write),
    };
    let storage = open::storage(path, access, open)?;
    open::lock(&*storage, lock, open).at(path)?;
    let undo_path = options.undo.clone().unwrap_or_else(|| undo::default_path(path));
    if !options.dry_run && open.file_system.open(&undo_path, Access::Read).is_ok() {
        return Err(undo::exists(&undo_path));
    }
    let mut before = Vec::new();
    let first = check_storage(storage.clone(), path, open, &CheckOptions::default(), &mut |finding| {
        keep(&mut before, finding)
    })?;
    let staged = Arc::new(
        Staged::new(storage.clone())
            .context(|| "get the file length".into())
            .at(path)?,
    );
    let mut repair = Repair {
        staged: &staged,
        path,
        open,
        options,
        mends: Vec::new(),
    };
    match repair.run() {
        Ok(()) => {}
        // A broken rule that stands before everything else: the check has told it.
        Err(error) if error.defect().is_some() => {
            staged.discard().context(|| "get the file length".into()).at(path)?;
            repair.mends.clear();
        }
        Err(error) => return Err(error.with_path(path)),
    }
    let mends = repair.mends;
    let mut after = Vec::new();
    let mut result = RepairReport {
        check: first,
        undo: None,
    };
    if staged.is_changed() {
        let check = CheckOptions::default();
        result.check = check_storage(staged.clone(), path, open, &check, &mut |finding| {
            keep(&mut after, finding)
        })?;
        if !options.dry_run {
            undo::save(&undo_path, &staged, &*storage, open)?;
            // ORDER: the undo file is durable, under its name.
            staged.apply().context(|| "change the file".into()).map_err(|e| {
                let hint = format!(
                    "avhdx undo {} {} takes back what was done",
                    path.display(),
                    undo_path.display()
                );
                e.with_path(path).with_hint(hint)
            })?;
            result.undo = Some(undo_path);
        }
    } else {
        after.clone_from(&before);
    }
    let was = |list: &[Finding], finding: &Finding| list.iter().any(|f| f.defect == finding.defect);
    for finding in &before {
        let repaired = !was(&after, finding);
        result.check.repaired += u64::from(repaired);
        report(&Finding {
            repaired,
            ..finding.clone()
        });
    }
    for finding in after.iter().filter(|finding| !was(&before, finding)) {
        report(finding);
    }
    for finding in &mends {
        result.check.repaired += u64::from(finding.repaired);
        if !finding.repaired {
            match finding.severity {
                Severity::Error => result.check.errors += 1,
                Severity::Warning => result.check.warnings += 1,
                Severity::Note => result.check.notes += 1,
            }
        }
        report(finding);
    }
    Ok(result)
}

/// Findings are compared one with another; a file that breaks more rules than this is past mending one by one.
fn keep(list: &mut Vec<Finding>, finding: &Finding) {
    if list.len() < limits::MAX_REPAIR_FINDINGS {
        list.push(finding.clone());
    }
}

struct Repair<'a> {
    staged: &'a Arc<Staged>,
    path: &'a Path,
    open: &'a OpenOptions,
    options: &'a RepairOptions,
    /// What check does not look for.
    mends: Vec<Finding>,
}

impl Repair<'_> {
    fn run(&mut self) -> Result<()> {
        let storage: Arc<dyn Storage> = self.staged.clone();
        let len = self.staged.original_len();
        let identity = headers::read(&*storage, len)?.header.data_write_guid;
        let front = match Front::read(storage.clone(), LogPolicy::Auto, true) {
            Err(error) if self.options.clear_log && error.defect().is_some_and(|d| d.rule == Rule::LogEmpty) => {
                self.clear_log()?
            }
            front => front?,
        };
        let one_header = !front.current.copies_agree;
        let regions = (!front.region_copies_agree).then(|| front.regions.encode());
        let shared = Shared::new(self.open.meta_cache_size, self.open.cache);
        let image = Image::new(front, self.path, &shared, true);
        if one_header {
            image.update_header(WriteMode::File, |_| ())?;
        }
        if let Some(bytes) = regions {
            let pages = region::OFFSETS.into_iter().flat_map(|at| pages_of(at, &bytes));
            image.stage(pages.collect(), WriteMode::File)?;
            image.commit()?;
        }
        self.mend_bat(&image)?;
        self.mend_linkage(&image)?;
        image.clean()?;
        if self.options.cut_tail {
            self.cut_tail(&image)?;
        }
        let len = self.staged.len().context(|| "get the file length".into())?;
        if headers::read(&*storage, len)?.header.data_write_guid != identity {
            return Err(Error::new(
                ErrorKind::Bug,
                "the repair would change the identity of the disk",
            ));
        }
        Ok(())
    }

    /// SPEC: 2.3.3 a log that is named and holds no valid entry is corrupt. Writers that name it before they write the
    /// first entry leave that behind when they are cut; what was flushed is then in place. Emptied only if every other
    /// rule is kept.
    fn clear_log(&mut self) -> Result<Front> {
        let storage: Arc<dyn Storage> = self.staged.clone();
        let mut current = headers::read(&*storage, self.staged.original_len())?;
        headers::update(&*storage, &mut current, |header| {
            header.file_write_guid = Guid::random();
            header.log_guid = Guid::ZERO;
        })?;
        let mut broken = None;
        check_storage(
            storage.clone(),
            self.path,
            self.open,
            &CheckOptions::default(),
            &mut |finding| {
                if finding.severity == Severity::Error && broken.is_none() {
                    broken = Some(finding.defect.clone());
                }
            },
        )?;
        match broken {
            Some(defect) => Err(defect.into()),
            None => Front::read(storage, LogPolicy::Auto, true),
        }
    }

    fn cut_tail(&mut self, image: &Image) -> Result<()> {
        let storage: Arc<dyn Storage> = self.staged.clone();
        let check = CheckOptions::default();
        if check_storage(storage, self.path, self.open, &check, &mut |_| ())?.errors > 0 {
            // Space that nobody owns may be what a broken entry should lead to.
            return Ok(());
        }
        let before = image.file_len();
        image.know_space()?;
        image.ensure_mode(WriteMode::File)?;
        image.clean()?;
        let after = image.file_len();
        if after < before {
            self.mended(
                Severity::Note,
                Defect::new(
                    Rule::BeyondEof,
                    "file",
                    after,
                    format!("{} bytes behind the last structure", before - after),
                    "a file that ends there",
                ),
            );
        }
        Ok(())
    }

    fn mended(&mut self, severity: Severity, defect: Defect) {
        self.mends.push(Finding {
            severity,
            defect,
            repaired: true,
        });
    }
}
