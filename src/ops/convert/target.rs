//! Where the content goes: a file that is empty at first, in which what is never written reads as zeros.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::image::create::{self as layout, NewImage};
use crate::image::payload::Payload;
use crate::image::{Image, Shared};
use crate::limits;
use crate::options::{CacheMode, LogPolicy};
use crate::storage::{self, Barrier, CopyMethod, Storage};
use crate::vhd::write::VhdWriter;

/// Takes pieces, each once. Those that are put come in ascending order; what is left out reads as zeros.
pub(crate) trait Target {
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Whether it can have extents of `file`, as far as can be told.
    fn can_share(&self, file: &dyn Storage) -> bool {
        let _ = file;
        false
    }

    /// Takes `len` bytes, zeros included, by sharing what `file` has at `file_offset`. If that fails, the piece may be put.
    fn share(&mut self, file: &dyn Storage, file_offset: u64, len: u64, offset: u64) -> Result<()> {
        let _ = (file, file_offset, len, offset);
        Err(Error::new(ErrorKind::Unsupported, "this shares nothing"))
    }
}

pub(crate) struct Raw<'a>(pub(crate) &'a dyn Storage);

impl Target for Raw<'_> {
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        Payload::Bulk(bytes).put(self.0, offset)
    }

    fn can_share(&self, file: &dyn Storage) -> bool {
        self.0.can_share(file)
    }

    fn share(&mut self, file: &dyn Storage, file_offset: u64, len: u64, offset: u64) -> Result<()> {
        storage::share(self.0, offset, file, file_offset, len)
    }
}

impl Target for VhdWriter<'_> {
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write(bytes, offset)
    }

    fn can_share(&self, file: &dyn Storage) -> bool {
        self.storage().can_share(file)
    }

    fn share(&mut self, file: &dyn Storage, file_offset: u64, len: u64, offset: u64) -> Result<()> {
        VhdWriter::share(self, file, file_offset, len, offset)
    }
}

/// A stream: zeros are written out.
pub(crate) struct Stream<'a> {
    out: &'a mut dyn Write,
    at: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> Self {
        Stream { out, at: 0 }
    }

    /// Zeros up to `offset`.
    pub(crate) fn fill(&mut self, offset: u64) -> Result<()> {
        let zeros = [0; 64 << 10];
        while self.at < offset {
            let len = (offset - self.at).min(zeros.len() as u64);
            self.write(&zeros[..len as usize])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|cause| Error::io("write to the stream", cause))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out
            .flush()
            .map_err(|cause| Error::io("write to the stream", cause))
    }
}

impl Target for Stream<'_> {
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.fill(offset)?;
        self.write(bytes)
    }
}

/// A VHDX that has no name yet.
pub(crate) struct Vhdx {
    pub(crate) image: Image,
}

impl Vhdx {
    pub(crate) fn new(storage: &Arc<dyn Storage>, path: &Path, new: &NewImage) -> Result<Vhdx> {
        layout::write(&**storage, new)?;
        let shared = Shared::new(limits::DEFAULT_META_CACHE, CacheMode::Writeback);
        let image = Image::open_write(storage.clone(), path, LogPolicy::Auto, &shared)?;
        Ok(Vhdx { image })
    }

    /// Empties the log and makes all of the file durable. Returns the file's length.
    pub(crate) fn finish(&self) -> Result<u64> {
        self.image.clean()?;
        finish(&**self.image.storage())
    }
}

impl Target for Vhdx {
    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.image.write(offset, Payload::Bulk(bytes))
    }

    fn can_share(&self, file: &dyn Storage) -> bool {
        self.image.storage().can_share(file)
    }

    fn share(&mut self, file: &dyn Storage, file_offset: u64, len: u64, offset: u64) -> Result<()> {
        let payload = Payload::Copy {
            source: file,
            raw: Some(file),
            file_offset,
            len,
            methods: &[CopyMethod::Reflink],
            reflinked: &AtomicU64::new(0),
        };
        self.image.write(offset, payload)
    }
}

/// Makes a new file durable. Returns its length.
pub(crate) fn finish(storage: &dyn Storage) -> Result<u64> {
    // ORDER: all of it is durable before the file gets its name.
    storage
        .flush(Barrier::NewFile)
        .context(|| "make the new file durable".into())?;
    storage.len().context(|| "get the file length".into())
}
