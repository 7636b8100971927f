//! What a merge notes in the parent locators of files it may not finish with (docs/durability.md "Merge"), so that
//! another run knows what was asked for and what is done. Only the files that a note is about are trusted with it: a
//! file that says something of another one is not enough to skip a copy or to remove it.

use crate::format::locator::{Locator, MERGE};
use crate::guid::Guid;
use crate::image::Image;

/// What a note says of the file it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Stage {
    /// It, and others above it, are being merged into its parent.
    Copying,
    /// The same; the parent holds it all now.
    Copied,
    /// It was made on a merged layer and is on the target now; linkage2 is the merged layer.
    Child,
    /// It was merged and is to be removed.
    Retired,
}

const STAGES: [(Stage, &str); 4] = [
    (Stage::Copying, "copying"),
    (Stage::Copied, "copied"),
    (Stage::Child, "child"),
    (Stage::Retired, "retired"),
];

/// The note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Record {
    pub(in crate::ops) stage: Stage,
    /// How many layers merge, this file and those above it.
    pub(in crate::ops) layers: usize,
    /// DataWriteGuid of the uppermost of them; of a leaf, only what is copied is known.
    pub(in crate::ops) top: Guid,
    /// The uppermost is the leaf.
    pub(in crate::ops) leaf: bool,
    /// The merged files stay.
    pub(in crate::ops) keep: bool,
    /// Files that were between this one and its parent and are to be removed; linkage2 is the identity of the first.
    pub(in crate::ops) abandoned: usize,
}

impl Record {
    pub(in crate::ops) fn of(image: &Image) -> Option<Record> {
        image.items().locator.as_ref().and_then(Record::in_locator)
    }

    pub(in crate::ops) fn in_locator(locator: &Locator) -> Option<Record> {
        Record::parse(&locator.get(MERGE)?)
    }

    /// Puts the note into a locator, or takes it out.
    pub(in crate::ops) fn note(record: Option<Record>, locator: &mut Locator) {
        match record {
            Some(record) => locator.set(MERGE, &record.text()),
            None => locator.remove(MERGE),
        }
    }

    /// Whether it says that `layers` layers, the uppermost of which is `top` as it is now, are all in the parent.
    pub(in crate::ops) fn is_copied(&self, layers: usize, top: Guid) -> bool {
        self.stage == Stage::Copied && self.layers == layers && self.top == top
    }

    fn text(self) -> String {
        let stage = STAGES.iter().find(|(stage, _)| *stage == self.stage);
        format!(
            "{} {} {} {} {} {}",
            stage.map_or("", |(_, name)| name),
            self.layers,
            self.top.braced(),
            if self.leaf { "leaf" } else { "layer" },
            if self.keep { "keep" } else { "unlink" },
            self.abandoned
        )
    }

    /// `None` for what this library does not write.
    fn parse(text: &str) -> Option<Record> {
        let mut words = text.split(' ');
        let stage = words.next()?;
        let record = Record {
            stage: STAGES.iter().find(|(_, name)| *name == stage)?.0,
            layers: words.next()?.parse().ok()?,
            top: Guid::parse(words.next()?)?,
            leaf: one_of(words.next()?, "leaf", "layer")?,
            keep: one_of(words.next()?, "keep", "unlink")?,
            abandoned: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(record)
    }
}

/// Whether it is the first of two words.
fn one_of(word: &str, first: &str, second: &str) -> Option<bool> {
    match word {
        _ if word == first => Some(true),
        _ if word == second => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_is_read() {
        for (stage, name) in STAGES {
            for flag in [false, true] {
                let record = Record {
                    stage,
                    layers: 3,
                    top: Guid::from_u128(7),
                    leaf: flag,
                    keep: !flag,
                    abandoned: 2,
                };
                assert_eq!(Record::parse(&record.text()), Some(record));
                assert!(record.text().starts_with(name));
                assert_eq!(Record::parse(&format!("{} more", record.text())), None);
            }
        }
        for text in ["", "copied", "melting 1 {0} leaf keep 0", "copied x y leaf keep 0"] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }
}
