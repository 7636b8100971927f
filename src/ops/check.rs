//! Checking one file against every structural rule. Reads only; memory is bounded by two bits for each MiB of file.

use std::path::Path;
use std::sync::Arc;

use crate::chain::open;
use crate::error::{Defect, ErrorKind, PathContext, Result, Rule};
use crate::format::bat::PayloadState;
use crate::image::front::Front;
use crate::image::space::Space;
use crate::image::{Image, Shared};
use crate::limits;
use crate::options::{LogPolicy, OpenOptions};
use crate::storage::{Access, LockMode, Storage};
use crate::units::{BatSlot, ChunkIndex, MIB};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Legal and worth knowing.
    Note,
    /// Other programs may refuse it.
    Warning,
    /// A rule is broken.
    Error,
}

/// Something that was found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The rule, place, found, wanted.
    pub defect: Defect,
    /// Mended, by [`super::repair`]; check never does.
    pub repaired: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CheckReport {
    /// Number of errors.
    pub errors: u64,
    /// Number of warnings.
    pub warnings: u64,
    /// Number of notes.
    pub notes: u64,
    /// Payload blocks with space in the file.
    pub allocated_blocks: u64,
    /// Payload blocks in all.
    pub total_blocks: u64,
    /// Bytes of file no structure owns.
    pub leaked_bytes: u64,
    /// Findings that were mended, by [`super::repair`]; the other numbers are of the file as it is then.
    pub repaired: u64,
}

/// What to look for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CheckOptions {
    /// Also report, as warnings, what Windows would not have written.
    pub windows: bool,
}

struct Reporter<'a> {
    report: CheckReport,
    sink: &'a mut dyn FnMut(&Finding),
}

impl Reporter<'_> {
    fn add(&mut self, severity: Severity, defect: Defect) {
        match severity {
            Severity::Error => self.report.errors += 1,
            Severity::Warning => self.report.warnings += 1,
            Severity::Note => self.report.notes += 1,
        }
        (self.sink)(&Finding {
            severity,
            defect,
            repaired: false,
        });
    }
}

/// Checks every structural rule of one file; parents are not opened. Each finding goes to `report` as it is made. A
/// file that breaks a rule is not a failure of the check: failures are a file that cannot be read and one that is not
/// a VHDX at all.
pub fn check(
    path: &Path,
    open: &OpenOptions,
    options: &CheckOptions,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckReport> {
    let storage = open::storage(path, Access::Read, open)?;
    open::lock(&*storage, LockMode::Read, open).at(path)?;
    check_storage(storage, path, open, options, report)
}

/// [`check`] of a file that is open.
pub(super) fn check_storage(
    storage: Arc<dyn Storage>,
    path: &Path,
    open: &OpenOptions,
    options: &CheckOptions,
    report: &mut dyn FnMut(&Finding),
) -> Result<CheckReport> {
    let mut reporter = Reporter {
        report: CheckReport::default(),
        sink: report,
    };
    let front = match Front::read(storage, LogPolicy::Memory, false) {
        Ok(front) => front,
        Err(error) => {
            return match error.defect() {
                Some(defect) if error.kind() != ErrorKind::NotVhdx => {
                    reporter.add(Severity::Error, defect.clone());
                    Ok(reporter.report)
                }
                _ => Err(error.with_path(path)),
            }
        }
    };
    check_front(&front, options, &mut reporter);
    let shared = Shared::new(open.meta_cache_size, open.cache);
    let image = Arc::new(Image::new(front, path, &shared, false));
    check_blocks(&image, options, &mut reporter).at(path)?;
    Ok(reporter.report)
}

fn check_front(front: &Front, options: &CheckOptions, reporter: &mut Reporter<'_>) {
    let header = front.current.header;
    let note = |rule, structure: &'static str, offset, found: &'static str, wanted: &'static str| {
        Defect::new(rule, structure, offset, found, wanted)
    };
    if front.dirty {
        let defect = note(
            Rule::LogEmpty,
            "log",
            header.log_offset,
            "updates that are not in place",
            "an empty log",
        );
        reporter.add(Severity::Note, defect);
    }
    if header.sequence_number > u64::MAX - limits::HEADER_UPDATES {
        let defect = Defect::new(
            Rule::HeaderSequence,
            "header",
            crate::format::header::OFFSETS[front.current.slot],
            format!("sequence number {}", header.sequence_number),
            "one that can be incremented, or nothing can be written",
        );
        reporter.add(Severity::Error, defect);
    }
    if !front.current.copies_agree {
        let at = crate::format::header::OFFSETS[1 - front.current.slot];
        let defect = note(
            Rule::NoHeader,
            "header",
            at,
            "one copy is not valid",
            "two valid copies",
        );
        reporter.add(Severity::Warning, defect);
    }
    if !front.region_copies_agree {
        let at = crate::format::region::OFFSETS[1];
        let defect = note(
            Rule::NoRegionTable,
            "region table",
            at,
            "the copies differ",
            "two equal copies",
        );
        reporter.add(Severity::Warning, defect);
    }
    if !options.windows {
        return;
    }
    let mut lint = |defect| reporter.add(Severity::Warning, defect);
    if front.file_len % MIB != 0 {
        let found = format!("{} bytes", front.file_len);
        lint(Defect::new(
            Rule::BeyondEof,
            "file",
            front.file_len,
            found,
            "a multiple of 1 MiB",
        ));
    }
    for region in front.regions.regions.iter().filter(|r| !r.required) {
        let found = format!("{region} not marked as required");
        lint(Defect::new(
            Rule::RegionRange,
            "region table",
            region.offset,
            found,
            "BAT and metadata required",
        ));
    }
    if let Some(locator) = front.items.locator.as_ref() {
        use crate::format::locator::{ABSOLUTE_WIN32_PATH, PARENT_LINKAGE2, RELATIVE_PATH};
        for key in [ABSOLUTE_WIN32_PATH, RELATIVE_PATH, PARENT_LINKAGE2] {
            if locator.get(key).is_none() {
                let at = front.regions.metadata().offset;
                lint(Defect::new(
                    Rule::Locator,
                    "parent locator",
                    at,
                    format!("no {key}"),
                    "the keys Windows writes",
                ));
            }
        }
    }
}

fn check_blocks(image: &Image, options: &CheckOptions, reporter: &mut Reporter<'_>) -> Result<()> {
    let geometry = *image.geometry();
    let mut space = Space::new(image.file_len());
    let mut own = |reporter: &mut Reporter<'_>, name: String, offset: u64, len: u64| {
        if let Err(defect) = space.claim(|| name, offset, len) {
            reporter.add(Severity::Error, defect);
        }
    };
    let (log_offset, log_length) = image.log_place();
    if log_length != 0 {
        own(reporter, "log".into(), log_offset, u64::from(log_length));
    }
    for region in image.regions() {
        own(
            reporter,
            format!("region {}", region.guid),
            region.offset,
            u64::from(region.length),
        );
    }
    reporter.report.total_blocks = geometry.block_count();
    let mut missing_reported: Option<ChunkIndex> = None;
    image.for_each_bat_entry(|index, slot, raw| {
        let entry_offset = image.bat_offset() + index.0 * 8;
        let place = match slot {
            BatSlot::Payload(block) if block.0 < geometry.block_count() => match image.check_payload(block, raw) {
                Ok(entry) => {
                    if entry.state.is_present() {
                        reporter.report.allocated_blocks += 1;
                    }
                    let chunk = geometry.chunk_of(block);
                    if entry.state == PayloadState::PartiallyPresent && missing_reported != Some(chunk) {
                        if let Err(error) = image.bitmap_page_offset(chunk.0 * 256) {
                            missing_reported = Some(chunk);
                            if let Some(defect) = error.defect() {
                                reporter.add(Severity::Error, defect.clone());
                            }
                        }
                    }
                    if options.windows && !entry.state.is_present() && raw > 7 {
                        let found = format!("{raw:#x}");
                        let wanted = "offset 0 in an entry without place";
                        let name = format!("BAT entry {}", index.0);
                        reporter.add(
                            Severity::Warning,
                            Defect::new(Rule::BatOffset, name, entry_offset, found, wanted),
                        );
                    }
                    entry.has_space().then_some((entry.file_offset, geometry.block_size()))
                }
                Err(error) => {
                    defect_of(reporter, error)?;
                    None
                }
            },
            BatSlot::Bitmap(chunk) if geometry.is_differencing() => match image.check_bitmap(chunk, raw) {
                Ok(entry) => entry.present.then_some((entry.file_offset, MIB)),
                Err(error) => {
                    defect_of(reporter, error)?;
                    None
                }
            },
            _ => None,
        };
        if let Some((offset, len)) = place {
            own(reporter, format!("BAT entry {}", index.0), offset, len);
        }
        Ok(())
    })?;
    space.keep_partial_tail(image.file_len());
    reporter.report.leaked_bytes = space.free_bytes();
    Ok(())
}

/// Reports a broken rule; anything else is a failure.
fn defect_of(reporter: &mut Reporter<'_>, error: crate::error::Error) -> Result<()> {
    match error.defect() {
        Some(defect) => {
            reporter.add(Severity::Error, defect.clone());
            Ok(())
        }
        None => Err(error),
    }
}
