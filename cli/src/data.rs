//! Verbs that move bytes.

use std::io::{self, Read, Write};
use std::path::Path;

use avhdx::options::ZeroFlags;
use avhdx::Chain;

use crate::args::{Open, Range};
use crate::{Failure, Outcome};

const PIECE: u64 = 1 << 20;

/// The range's end, by its length or the disk's.
fn end(range: &Range, chain: &Chain) -> Result<u64, Failure> {
    let end = match range.length {
        Some(length) => range.offset.checked_add(length),
        None => Some(chain.size().max(range.offset)),
    };
    end.ok_or_else(|| Failure::Usage("offset and length are too large".into()))
}

pub(crate) fn read(path: &Path, range: &Range, open: &Open) -> Outcome {
    let chain = Chain::open(path, &open.reading())?;
    let end = end(range, &chain)?;
    // The whole range, before the first byte goes out.
    chain.block_status(
        range.offset,
        end - range.offset,
        avhdx::Scope::Chain,
        0,
        &mut Vec::new(),
    )?;
    let mut out = io::stdout().lock();
    let mut buf = vec![0; PIECE as usize];
    let mut at = range.offset;
    while at < end {
        let piece = &mut buf[..(end - at).min(PIECE) as usize];
        chain.read(piece, at)?;
        out.write_all(piece)?;
        at += piece.len() as u64;
    }
    out.flush()?;
    Ok(0)
}

pub(crate) fn write(path: &Path, range: &Range, pattern: Option<u8>, open: &Open) -> Outcome {
    let chain = Chain::open(path, &open.writing())?;
    if let Some(length) = range.length {
        // Nothing is written of what cannot be written whole.
        chain.block_status(range.offset, length, avhdx::Scope::Chain, 0, &mut Vec::new())?;
    }
    let mut at = range.offset;
    let mut left = range.length;
    let mut input = io::stdin().lock();
    let mut buf = vec![pattern.unwrap_or(0); PIECE as usize];
    loop {
        let most = left.map_or(PIECE, |left| left.min(PIECE)) as usize;
        let len = match pattern {
            Some(_) => most,
            None => fill(&mut input, &mut buf[..most])?,
        };
        if len == 0 {
            break;
        }
        chain.write(&buf[..len], at, false)?;
        at += len as u64;
        left = left.map(|left| left - len as u64);
    }
    chain.close()?;
    match left {
        Some(left) if left > 0 => Err(Failure::Stream(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the input ended {left} bytes early; what there was is written"),
        ))),
        _ => Ok(0),
    }
}

/// Reads until `buf` is full or the input ends.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match input.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

pub(crate) fn zero(path: &Path, range: &Range, open: &Open) -> Outcome {
    let chain = Chain::open(path, &open.writing())?;
    let end = end(range, &chain)?;
    let flags = ZeroFlags {
        may_unmap: true,
        ..ZeroFlags::default()
    };
    chain.zero(range.offset, end - range.offset, flags)?;
    chain.close()?;
    Ok(0)
}

pub(crate) fn discard(path: &Path, range: &Range, open: &Open) -> Outcome {
    let chain = Chain::open(path, &open.writing())?;
    let end = end(range, &chain)?;
    chain.discard(range.offset, end - range.offset, false)?;
    chain.close()?;
    Ok(0)
}
