//! Extents.

use super::snapshot::walk;
use super::{Chain, Extent, ExtentState, Scope};
use crate::error::{Error, ErrorKind, PathContext, Result};
use crate::format::bat::PayloadState;
use crate::image::lookup::Source;

impl Chain {
    /// Appends up to `max` extents that cover the range from `offset` on to `out`, neighbours with the same state
    /// joined; returns the bytes they cover, which is less than `len` when there are more. Offsets and lengths in
    /// bytes. A hint to what is where at this moment: other threads may write meanwhile.
    pub fn block_status(&self, offset: u64, len: u64, scope: Scope, max: usize, out: &mut Vec<Extent>) -> Result<u64> {
        let snapshot = self.current();
        let (from, size) = match scope {
            Scope::Chain => (0, snapshot.leaf().virtual_size()),
            Scope::Layer(layer) => (layer, self.layer(layer)?.virtual_size()),
        };
        let end = offset.checked_add(len).filter(|&end| end <= size);
        let Some(end) = end else {
            return Err(Error::new(
                ErrorKind::Range,
                format!("{len} bytes at offset {offset} are not all inside the disk of {size} bytes"),
            )
            .with_offset(offset));
        };
        let first = out.len();
        let mut at = offset;
        while at < end {
            let (len, layer, source) = match scope {
                Scope::Chain => {
                    let found = walk(&snapshot.layers, 0, at, end - at)?;
                    (found.len, found.layer, found.source)
                }
                Scope::Layer(_) => {
                    let image = &snapshot.layers[from];
                    let found = image.lookup(at, end - at).at(image.name())?;
                    (found.len, from, found.source)
                }
            };
            let next = Extent {
                offset: at,
                length: len,
                state: state(source),
                layer: layer as u32,
                file_offset: match source {
                    Source::Data { file_offset } => Some(file_offset),
                    _ => None,
                },
            };
            let count = out.len() - first;
            match out[first..].last_mut() {
                Some(last) if continues(last, &next) => last.length += len,
                _ if count >= max => break,
                _ => out.push(next),
            }
            at += len;
        }
        Ok(at - offset)
    }
}

fn state(source: Source) -> ExtentState {
    match source {
        Source::Data { .. } => ExtentState::Data,
        Source::Transparent | Source::Zero(PayloadState::NotPresent) => ExtentState::Hole,
        Source::Zero(PayloadState::Unmapped) => ExtentState::Unmapped,
        Source::Zero(PayloadState::Undefined) => ExtentState::Undefined,
        Source::Zero(_) => ExtentState::Zero,
    }
}

fn continues(last: &Extent, next: &Extent) -> bool {
    let places = match (last.file_offset, next.file_offset) {
        (Some(a), Some(b)) => a + last.length == b,
        (None, None) => true,
        _ => false,
    };
    last.state == next.state && last.layer == next.layer && places
}
