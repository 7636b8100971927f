//! What a merge notes in the parent locators of files it may not finish with (docs/durability.md "Merge"), so that
//! another run knows what was asked for.

use crate::format::locator::{Locator, MERGE};
use crate::guid::Guid;
use crate::image::Image;

/// The note, in the file directly above the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct Record {
    /// This file and those above it that merge into its parent. 0: the merge is complete, but for what it leaves behind.
    pub(in crate::ops) layers: usize,
    /// DataWriteGuid of the uppermost of them; zero for the leaf, whose changes.
    pub(in crate::ops) top: Guid,
    /// Files that were between this one and its parent and are to be removed; linkage2 is the identity of the first.
    pub(in crate::ops) abandoned: usize,
    /// The merged files stay.
    pub(in crate::ops) keep: bool,
}

impl Record {
    pub(in crate::ops) fn of(image: &Image) -> Option<Record> {
        image
            .items()
            .locator
            .and_then(|locator| Record::parse(&locator.get(MERGE)?))
    }

    /// Puts the note into a locator, or takes it out.
    pub(in crate::ops) fn note(record: Option<Record>, locator: &mut Locator) {
        match record {
            Some(record) => locator.set(MERGE, &record.text()),
            None => locator.remove(MERGE),
        }
    }

    fn text(self) -> String {
        let files = if self.keep { "keep" } else { "unlink" };
        format!("{} {} {} {files}", self.layers, self.top.braced(), self.abandoned)
    }

    /// `None` for what this library does not write.
    fn parse(text: &str) -> Option<Record> {
        let mut words = text.split(' ');
        let record = Record {
            layers: words.next()?.parse().ok()?,
            top: Guid::parse(words.next()?)?,
            abandoned: words.next()?.parse().ok()?,
            keep: match words.next()? {
                "keep" => true,
                "unlink" => false,
                _ => return None,
            },
        };
        words.next().is_none().then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_is_read() {
        for keep in [false, true] {
            let record = Record {
                layers: 3,
                top: Guid::from_u128(7),
                abandoned: 2,
                keep,
            };
            assert_eq!(Record::parse(&record.text()), Some(record));
        }
        for text in [
            "",
            "3",
            "x y 0 keep",
            "1 {0} 0 keep",
            "1 {00000000-0000-0000-0000-000000000000} 0 keep more",
        ] {
            assert_eq!(Record::parse(text), None, "{text}");
        }
    }
}
