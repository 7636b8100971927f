//! Whether two disks read the same. What both have in the same place of the same file, and what reads as zeros in both,
//! is not read.

use std::sync::Arc;

use super::pace::Pace;
use crate::chain::snapshot::{walk, Walk};
use crate::chain::Chain;
use crate::error::Result;
use crate::image::lookup::Source;
use crate::image::Image;
use crate::options::ProgressFn;
use crate::units::MIB;

/// Bytes compared at once.
const PIECE: u64 = MIB;

/// How to compare.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct CompareOptions {
    /// Disks of different sizes differ, even if what the larger one has more is zeros.
    pub strict: bool,
    /// Bytes read of each disk per second at most; 0 for no limit.
    pub rate: u64,
}

/// Compares what two disks read as. `None` when they are equal, else the offset of the first byte that differs. Of two
/// sizes, the part that only the larger disk has must read as zeros; or, with `strict`, the sizes must be equal (the
/// first difference is then where the smaller disk ends, unless there is an earlier one).
///
/// Waits for operations that change layers. Others may write meanwhile: each read sees what is there at its moment.
pub fn compare(a: &Chain, b: &Chain, options: &CompareOptions, progress: ProgressFn<'_>) -> Result<Option<u64>> {
    // In the order of their addresses, so that two comparisons of the same disks cannot wait for each other.
    let (first, second) = if std::ptr::from_ref(a) <= std::ptr::from_ref(b) {
        (a, b)
    } else {
        (b, a)
    };
    let _first = first.control.lock();
    let _second = (!std::ptr::eq(first, second)).then(|| second.control.lock());
    let sides = [(a, a.current()), (b, b.current())];
    let sizes = sides.each_ref().map(|(_, snapshot)| snapshot.leaf().virtual_size());
    let total = sizes[0].max(sizes[1]);
    let common = sizes[0].min(sizes[1]);
    let hint = "nothing was changed; run it again";
    let mut pace = Pace::new("the comparison", hint, options.rate, progress).of(sides[0].1.leaf().name());
    pace.expect(total);
    let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    let mut at = 0;
    while at < total {
        if at >= common && options.strict {
            return Ok(Some(common));
        }
        let mut len = if at < common { common } else { total } - at;
        let mut found: [Option<Walk>; 2] = [None, None];
        for ((side, size), found) in sides.iter().zip(sizes).zip(&mut found) {
            if at < size {
                let walked = walk(&side.1.layers, 0, at, len)?;
                len = walked.len;
                *found = Some(walked);
            }
        }
        let place = |i: usize| match found[i] {
            Some(Walk {
                layer,
                source: Source::Data { file_offset },
                ..
            }) => Some((&sides[i].1.layers[layer], file_offset)),
            _ => None,
        };
        let places = (place(0), place(1));
        let same = match &places {
            (None, None) => true,
            (Some(x), Some(y)) => is_shared(x, y),
            _ => false,
        };
        if !same {
            len = len.min(PIECE);
            for (i, buf) in buffers.iter_mut().enumerate() {
                let buf = &mut buf[..len as usize];
                match place(i) {
                    Some(_) => sides[i].0.read(buf, at)?,
                    None => buf.fill(0),
                }
            }
            let (x, y) = (&buffers[0][..len as usize], &buffers[1][..len as usize]);
            if x != y {
                let within = x.iter().zip(y).position(|(x, y)| x != y).unwrap_or(0);
                return Ok(Some(at + within as u64));
            }
        }
        at += len;
        pace.advance(len, if same { 0 } else { len })?;
    }
    Ok(None)
}

/// Whether both are the same bytes of the same file, read without a log in between.
fn is_shared((x, x_offset): &(&Arc<Image>, u64), (y, y_offset): &(&Arc<Image>, u64)) -> bool {
    let id = x.storage().id();
    x_offset == y_offset && id.is_some() && id == y.storage().id() && !x.is_dirty() && !y.is_dirty()
}
