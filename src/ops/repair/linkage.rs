//! The way to the parent: paths that lead nowhere while the parent is found by its identity are written anew.

use std::path::PathBuf;

use super::Repair;
use crate::chain::locate::{self, directory, Wanted};
use crate::chain::paths;
use crate::error::{Defect, Result, Rule};
use crate::format::locator::{ABSOLUTE_WIN32_PATH, RELATIVE_PATH, VOLUME_PATH};
use crate::image::Image;
use crate::ops::check::{Finding, Severity};
use crate::ops::layers;
use crate::storage::Access;

impl Repair<'_> {
    pub(super) fn mend_linkage(&mut self, image: &Image) -> Result<()> {
        let Some((linkage, linkage2)) = image.linkage().filter(|_| self.open.parents) else {
            return Ok(());
        };
        let Some(locator) = image.items().locator else {
            return Ok(());
        };
        let at = image.regions().iter().map(|r| r.offset).min().unwrap_or_default();
        let wanted = Wanted {
            child: self.path,
            locator: &locator,
            linkage,
            linkage2,
        };
        let Ok(parent) = locate::locate(&wanted, self.open) else {
            // Which file it was is not for a repair to guess.
            self.mends.push(Finding {
                severity: Severity::Warning,
                defect: Defect::new(
                    Rule::Locator,
                    "parent locator",
                    at,
                    format!("no file with DataWriteGuid {linkage} where it leads"),
                    "the parent, there or in a directory named with search",
                ),
                repaired: false,
            });
            return Ok(());
        };
        let identity = locate::identity(parent.storage.clone())?;
        if identity != linkage {
            // Only linkage2 accepts it: a merge was cut, and resuming that is more than mending.
            self.mends.push(Finding {
                severity: Severity::Warning,
                defect: Defect::new(
                    Rule::Locator,
                    "parent locator",
                    at,
                    "an interrupted merge",
                    "a finished one: resume it",
                ),
                repaired: false,
            });
            return Ok(());
        }
        let leads_there = |path: PathBuf| {
            let opened = self.open.file_system.open(&path, Access::Read).ok();
            opened.is_some_and(|storage| storage.id().is_some() && storage.id() == parent.storage.id())
        };
        let child_dir = directory(self.path);
        let relative = locator.get(RELATIVE_PATH);
        let relative = relative.and_then(|text| paths::relative_to_host(&text, &child_dir).ok());
        let absolute = [VOLUME_PATH, ABSOLUTE_WIN32_PATH].into_iter().filter_map(|key| {
            let text = locator.get(key)?;
            paths::absolute_to_host(&text, &self.open.drive_map).ok()
        });
        if relative.into_iter().chain(absolute).any(leads_there) {
            return Ok(());
        }
        layers::relink(self.open, image, &parent.path, (linkage, linkage2))?;
        let found = format!("paths that do not lead to the parent, {:?}", parent.path);
        let wanted = "paths that do";
        self.mended(
            Severity::Warning,
            Defect::new(Rule::Locator, "parent locator", at, found, wanted),
        );
        Ok(())
    }
}
