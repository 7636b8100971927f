//! What differs between two points of a chain: what the layers between them decide, or, byte by byte, what really
//! differs. Reads only.
//!
//! ```text
//!   newer   |  D  |     |  Z  |         a disk that ends earlier reads as zeros behind its end
//!   ...     |     |  D  |     |  D |
//!   older   |  changed: data, zero, data ...
//! ```

use crate::chain::snapshot::walk;
use crate::chain::{Chain, Extent, ExtentState};
use crate::error::{Error, ErrorKind, Result};
use crate::image::lookup::Source;
use crate::units::MIB;

/// Bytes compared at once.
const PIECE: u64 = MIB;

/// Where the changed ranges go, neighbours with the same state joined.
struct Collector<'a> {
    out: &'a mut Vec<Extent>,
    first: usize,
    max: usize,
    layer: u32,
}

impl Collector<'_> {
    /// False when there is no room for another one.
    fn add(&mut self, offset: u64, length: u64, state: ExtentState) -> bool {
        let count = self.out.len() - self.first;
        match self.out[self.first..].last_mut() {
            Some(last) if last.state == state && last.offset + last.length == offset => last.length += length,
            _ if count >= self.max => return false,
            _ => self.out.push(Extent {
                offset,
                length,
                state,
                layer: self.layer,
                file_offset: None,
            }),
        }
        true
    }
}

/// Appends to `out` the ranges of `[offset, offset + len)` that the layers from `newer` (0 = leaf) to the one above
/// `older` decide, ascending and joined, up to `max` of them; returns the bytes dealt with, less than `len` when there
/// are more. `Data`: to be read from `newer`; `Zero`: reads as zeros there. What is in no range reads the same at both
/// points. The range must lie in the disk as of `newer`; where the disk as of `older` is shorter it counts as zeros.
///
/// From metadata alone a range may be reported that holds what it held before. With `exact` both are read and compared,
/// and only sectors that differ are reported.
///
/// Waits for operations that change layers. Others may write to the leaf meanwhile: the answer is about this moment.
pub fn diff(
    chain: &Chain,
    newer: usize,
    older: usize,
    (offset, len): (u64, u64),
    exact: bool,
    max: usize,
    out: &mut Vec<Extent>,
) -> Result<u64> {
    let _control = chain.control.lock();
    let snapshot = chain.current();
    let layers = &snapshot.layers;
    if newer >= older || older >= layers.len() {
        return Err(Error::new(
            ErrorKind::Argument,
            format!(
                "no difference from layer {older} to layer {newer} of a chain of {}",
                layers.len()
            ),
        )
        .with_hint("the newer layer has the smaller number: 0 is the leaf, the base has the largest"));
    }
    let size = layers[newer].virtual_size();
    let old_size = layers[older].virtual_size();
    let Some(end) = offset.checked_add(len).filter(|&end| end <= size) else {
        return Err(Error::new(
            ErrorKind::Range,
            format!("{len} bytes at offset {offset} are not all inside the disk of {size} bytes"),
        )
        .with_offset(offset));
    };
    let mut found = Collector {
        first: out.len(),
        out,
        max,
        layer: newer as u32,
    };
    let sector = layers[newer].geometry().sector_size() as usize;
    let mut buffers = match exact {
        true => (vec![0; PIECE as usize], vec![0; PIECE as usize]),
        false => (Vec::new(), Vec::new()),
    };
    let between = &layers[..older];
    let mut at = offset;
    while at < end {
        // Up to the end of the older disk, behind which there is nothing that a shorter layer could hide.
        let most = if at < old_size { end.min(old_size) } else { end } - at;
        let walked = walk(between, newer, at, most)?;
        let hidden_nothing = at >= old_size && at >= layers[walked.layer].virtual_size();
        let state = match walked.source {
            Source::Transparent => None,
            Source::Zero(_) if hidden_nothing => None,
            Source::Zero(_) => Some(ExtentState::Zero),
            Source::Data { .. } => Some(ExtentState::Data),
        };
        let mut step = walked.len;
        if let Some(state) = state {
            let old = match at < old_size {
                true => Some(walk(layers, older, at, step)?),
                false => None,
            };
            let old_is_data = old.is_some_and(|old| matches!(old.source, Source::Data { .. }));
            if !exact {
                if !found.add(at, step, state) {
                    break;
                }
            } else {
                step = old.map_or(step, |old| old.len);
                if state == ExtentState::Data || old_is_data {
                    step = step.min(PIECE);
                    let (new, old) = (&mut buffers.0[..step as usize], &mut buffers.1[..step as usize]);
                    chain.read_layer(newer, new, at)?;
                    match old_is_data {
                        true => chain.read_layer(older, old, at)?,
                        false => old.fill(0),
                    }
                    if let Some(full) = add_differing(&mut found, at, state, sector, new, old) {
                        at = full;
                        break;
                    }
                }
            }
        }
        at += step;
    }
    Ok(at - offset)
}

/// Adds the sectors that differ; where it stopped, if there was no room.
fn add_differing(
    found: &mut Collector<'_>,
    at: u64,
    state: ExtentState,
    sector: usize,
    new: &[u8],
    old: &[u8],
) -> Option<u64> {
    if new == old {
        return None;
    }
    let mut here = at;
    // Requests begin anywhere: pieces end where sectors end.
    let (mut new, mut old) = (new, old);
    while !new.is_empty() {
        let part = (sector - (here % sector as u64) as usize).min(new.len());
        let ((a, new_rest), (b, old_rest)) = (new.split_at(part), old.split_at(part));
        if a != b && !found.add(here, part as u64, state) {
            return Some(here);
        }
        (new, old) = (new_rest, old_rest);
        here += part as u64;
    }
    None
}
