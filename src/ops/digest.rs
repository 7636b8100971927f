//! A checksum of what a disk reads as, the same as that of a raw copy. What reads as zeros is not read, only counted in.

use super::pace::Pace;
use crate::chain::snapshot::walk;
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::lookup::Source;
use crate::options::ProgressFn;
use crate::units::MIB;

/// Bytes read at once.
const PIECE: u64 = 4 * MIB;
/// Zeros counted in at once.
const STRETCH: u64 = 64 * MIB;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DigestAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl DigestAlgorithm {
    /// Every algorithm.
    pub const ALL: &'static [DigestAlgorithm] = &[DigestAlgorithm::Sha256, DigestAlgorithm::Sha512];

    /// Its name: that of the program that checks it, without "sum".
    pub fn name(self) -> &'static str {
        match self {
            DigestAlgorithm::Sha256 => "sha256",
            DigestAlgorithm::Sha512 => "sha512",
        }
    }

    /// The algorithm of this name.
    pub fn from_name(name: &str) -> Result<DigestAlgorithm> {
        let known = Self::ALL.iter().copied().find(|algorithm| algorithm.name() == name);
        known.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|algorithm| algorithm.name()).collect();
            Error::new(ErrorKind::Argument, format!("there is no digest algorithm {name:?}"))
                .with_hint(format!("there are {}", names.join(" and ")))
        })
    }

    /// Bytes of its result.
    pub fn len(self) -> usize {
        match self {
            DigestAlgorithm::Sha256 => 32,
            DigestAlgorithm::Sha512 => 64,
        }
    }

    /// Never: for lints that expect it beside `len`.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// How to compute a digest.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DigestOptions {
    /// Bytes read per second at most; 0 for no limit.
    pub rate: u64,
}

/// The digest of the whole disk as of `layer` (0 = the disk itself).
///
/// Waits for operations that change layers. To be that of one moment nobody may write to the leaf meanwhile; lower
/// layers do not change.
pub fn digest(
    chain: &Chain,
    layer: usize,
    algorithm: DigestAlgorithm,
    options: &DigestOptions,
    progress: ProgressFn<'_>,
) -> Result<Vec<u8>> {
    let _control = chain.control.lock();
    let pace = Pace::new(
        "the digest",
        "nothing was changed; run it again",
        options.rate,
        progress,
    );
    let pace = pace.of(&chain.layer_path(layer)?);
    match algorithm {
        DigestAlgorithm::Sha256 => run::<sha2::Sha256>(chain, layer, pace),
        DigestAlgorithm::Sha512 => run::<sha2::Sha512>(chain, layer, pace),
    }
}

fn run<D: sha2::Digest>(chain: &Chain, layer: usize, mut pace: Pace<'_>) -> Result<Vec<u8>> {
    let total = chain.layer(layer)?.virtual_size();
    pace.expect(total);
    let snapshot = chain.current();
    let is_data = |at: u64, max: u64| {
        let found = walk(&snapshot.layers, layer, at, max)?;
        Ok::<_, Error>((found.len, matches!(found.source, Source::Data { .. })))
    };
    let mut hasher = D::new();
    let mut buf = vec![0; PIECE.min(total) as usize];
    let mut at = 0;
    while at < total {
        let (mut len, data) = is_data(at, total - at)?;
        if data {
            // Small runs that follow each other are one read.
            while len < PIECE && at + len < total {
                match is_data(at + len, total - at - len)? {
                    (more, true) => len += more,
                    (_, false) => break,
                }
            }
            len = len.min(PIECE);
            let piece = &mut buf[..len as usize];
            chain.read_layer(layer, piece, at)?;
            hasher.update(&*piece);
        } else {
            len = len.min(STRETCH);
            let mut left = len;
            while left > 0 {
                let part = left.min(ZEROS.len() as u64);
                hasher.update(&ZEROS[..part as usize]);
                left -= part;
            }
        }
        at += len;
        pace.advance(len, if data { len } else { 0 })?;
        if !data {
            // Zeros are not read, but take their time.
            pace.ask()?;
        }
    }
    Ok(hasher.finalize().to_vec())
}
