//! BAT entries: offsets where there must be none, trimmed blocks with a place that is not theirs, a last block that is
//! cut by the end of the file. What an entry reads as never changes.

use std::collections::BTreeMap;

use super::Repair;
use crate::error::{Defect, IoContext, Result, Rule};
use crate::format::bat::PayloadEntry;
use crate::image::space::Space;
use crate::image::{Image, WriteMode};
use crate::log::ring::PageBytes;
use crate::ops::check::Severity;
use crate::units::{align_down, align_up, BatSlot, LOG_SECTOR, MIB};

/// Pages changed in one log entry.
const BATCH: usize = 64;
const STATE: u64 = 7;
const RESERVED: u64 = 0xF_FFF8;

/// What is known of the entries before one is changed.
struct Survey {
    space: Space,
    /// End of the block that ends last.
    end: u64,
}

impl Repair<'_> {
    pub(super) fn mend_bat(&mut self, image: &Image) -> Result<()> {
        let mut survey = self.survey(image)?;
        self.mend_entries(image, &mut survey)?;
        let end = align_up(survey.end, MIB).unwrap_or(survey.end);
        if end > image.file_len() {
            let found = format!("a file of {} bytes, shorter than its last block", image.file_len());
            let defect = Defect::new(Rule::BeyondEof, "file", image.file_len(), found, format!("{end} bytes"));
            // ORDER: announced before the file changes (I1).
            image.ensure_mode(WriteMode::File)?;
            image.extend(end)?;
            self.mended(Severity::Note, defect);
        }
        Ok(())
    }

    /// Who owns what for certain: everything but the places of trimmed blocks.
    fn survey(&self, image: &Image) -> Result<Survey> {
        let mut survey = Survey {
            space: Space::new(image.file_len()),
            end: 0,
        };
        let (log_offset, log_length) = image.log_place();
        let mut own = |offset, len| {
            // Conflicts among these are the check's to tell.
            let _ = survey.space.claim(String::new, offset, len);
        };
        own(log_offset, u64::from(log_length));
        for region in image.regions() {
            own(region.offset, u64::from(region.length));
        }
        image.for_each_bat_entry(|_, slot, raw| {
            let place = match slot {
                BatSlot::Payload(block) if block.0 < image.geometry().block_count() => image
                    .check_payload(block, raw)
                    .ok()
                    .filter(|entry| entry.state.is_present())
                    .map(|entry| (entry.file_offset, image.geometry().block_size())),
                BatSlot::Bitmap(chunk) if image.geometry().is_differencing() => {
                    let entry = image.check_bitmap(chunk, raw).ok().filter(|entry| entry.present);
                    entry.map(|entry| (entry.file_offset, MIB))
                }
                _ => None,
            };
            if let Some((offset, len)) = place {
                survey.end = survey.end.max(offset + len);
                let _ = survey.space.claim(String::new, offset, len);
            }
            Ok(())
        })?;
        Ok(survey)
    }

    fn mend_entries(&mut self, image: &Image, survey: &mut Survey) -> Result<()> {
        let mut pages: BTreeMap<u64, PageBytes> = BTreeMap::new();
        let (mut count, mut first) = (0u64, None);
        image.for_each_bat_entry(|index, slot, raw| {
            let BatSlot::Payload(block) = slot else { return Ok(()) };
            if block.0 >= image.geometry().block_count() || raw <= STATE || raw & RESERVED != 0 {
                return Ok(());
            }
            let pointless = matches!(raw & STATE, 0 | 2);
            let foreign = matches!(raw & STATE, 1 | 3)
                && match image.check_payload(block, raw) {
                    Ok(PayloadEntry { file_offset, .. }) => {
                        let len = image.geometry().block_size();
                        let claimed = survey.space.claim(String::new, file_offset, len);
                        survey.end = survey.end.max(if claimed.is_ok() { file_offset + len } else { 0 });
                        claimed.is_err()
                    }
                    Err(error) if error.defect().is_some() => true,
                    Err(error) => return Err(error),
                };
            if !pointless && !foreign {
                return Ok(());
            }
            let at = image.bat_offset() + index.0 * 8;
            if pointless {
                count += 1;
                first.get_or_insert((index, at, raw));
            }
            let page_at = align_down(at, LOG_SECTOR);
            if !pages.contains_key(&page_at) {
                if pages.len() >= BATCH {
                    image.stage(std::mem::take(&mut pages).into_iter().collect(), WriteMode::File)?;
                    image.commit()?;
                }
                let mut page = [0; LOG_SECTOR as usize];
                image
                    .view()
                    .read_at(&mut page, page_at)
                    .context(|| format!("read the BAT at file offset {page_at:#x}"))?;
                pages.insert(page_at, page);
            }
            if let Some(page) = pages.get_mut(&page_at) {
                let within = (at - page_at) as usize;
                page[within..within + 8].copy_from_slice(&(raw & STATE).to_le_bytes());
            }
            Ok(())
        })?;
        if !pages.is_empty() {
            image.stage(pages.into_iter().collect(), WriteMode::File)?;
            image.commit()?;
        }
        if let Some((index, at, raw)) = first {
            let name = match count {
                1 => format!("BAT entry {}", index.0),
                _ => format!("BAT entry {} and {} more", index.0, count - 1),
            };
            let wanted = "offset 0 in an entry without place";
            self.mended(
                Severity::Warning,
                Defect::new(Rule::BatOffset, name, at, format!("{raw:#x}"), wanted),
            );
        }
        Ok(())
    }
}
