//! What can go wrong, in terms a caller can act on.
//!
//! An [`Error`] is a small stable [`ErrorKind`] for decisions, one line for people, where it happened (path, layer,
//! offset), what to do about it ([`Error::hint`]) and, where there is one, the cause. A [`Defect`] is a rule of the
//! format that a file breaks; `check` prints the same type that `open` returns. An operating system error keeps its
//! errno to the very end. Display is one line and does not repeat its source: walk [`std::error::Error::source`].

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $errno:ident, $hresult:literal;)*) => {
        /// The stable classes of failure. Numbers are part of the C ABI: never reused, never changed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(i32)]
        pub enum ErrorKind { $($(#[$doc])* $variant = $code,)* }

        impl ErrorKind {
            /// Every kind, in numerical order.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$variant,)*];

            /// The name used in C (without `AVHDX_ERR_`), JSON and documentation.
            pub fn name(self) -> &'static str {
                match self { $(ErrorKind::$variant => $name,)* }
            }

            /// The errno a C caller receives, negated, when the operating system gave none.
            pub fn errno(self) -> i32 {
                match self { $(ErrorKind::$variant => libc::$errno,)* }
            }

            /// The HRESULT Windows uses for the same condition; 0 where it has none.
            pub fn hresult(self) -> u32 {
                match self { $(ErrorKind::$variant => $hresult,)* }
            }
        }
    };
}

kinds! {
    /// The file does not begin with the VHDX signature.
    NotVhdx = 1, "NOT_VHDX", EMEDIUMTYPE, 0xC03A_0004;
    /// A version, required region, required item or locator type this library does not know.
    Unsupported = 2, "UNSUPPORTED", ENOTSUP, 0xC03A_0005;
    /// A rule of the format is broken; the error carries the [`Defect`].
    Corrupt = 3, "CORRUPT", EUCLEAN, 0xC03A_0010;
    /// A checksum does not match.
    Checksum = 4, "CHECKSUM", EBADMSG, 0xC03A_0006;
    /// The file ends before a structure it must hold.
    Truncated = 5, "TRUNCATED", EUCLEAN, 0xC03A_0013;
    /// The log must be replayed and the options or the file forbid it.
    LogReplayRequired = 6, "LOG_REPLAY_REQUIRED", EROFS, 0;
    /// No candidate for the parent exists.
    ParentNotFound = 7, "PARENT_NOT_FOUND", ENOENT, 0xC03A_000D;
    /// A file was found where the parent should be, and is another disk or was modified.
    ParentIdMismatch = 8, "PARENT_ID_MISMATCH", ESTALE, 0xC03A_000E;
    /// The parent exists and policy or permission forbids opening it.
    ParentAccess = 9, "PARENT_ACCESS", EACCES, 0xC03A_0016;
    /// The parent has another logical sector size or format.
    ParentMismatch = 10, "PARENT_MISMATCH", EINVAL, 0xC03A_0017;
    /// The chain returns to itself or is deeper than allowed.
    ChainLoop = 11, "CHAIN_LOOP", ELOOP, 0xC03A_0018;
    /// The operation would invalidate other files; the message lists them.
    HasChildren = 12, "HAS_CHILDREN", EBUSY, 0;
    /// Another process uses the file.
    Locked = 13, "LOCKED", EAGAIN, 0xC03A_001E;
    /// A write to something opened, or only available, for reading.
    ReadOnly = 14, "READ_ONLY", EROFS, 0;
    /// There is not enough space.
    NoSpace = 15, "NO_SPACE", ENOSPC, 0;
    /// A range outside the virtual disk.
    Range = 16, "RANGE", EINVAL, 0xC03A_0012;
    /// An argument or option that cannot be used.
    Argument = 17, "ARGUMENT", EINVAL, 0xC03A_0012;
    /// Shrinking would cut data.
    ShrinkUnsafe = 18, "SHRINK_UNSAFE", EINVAL, 0xC03A_0012;
    /// An interrupted operation must be finished first.
    PendingOperation = 19, "PENDING_OPERATION", EINPROGRESS, 0xC03A_001C;
    /// The caller asked to stop; what was done so far is consistent and can be continued.
    Cancelled = 20, "CANCELLED", ECANCELED, 0;
    /// The operation cannot be done by changing metadata alone.
    NotFast = 21, "NOT_FAST", ENOTSUP, 0;
    /// An earlier metadata write failed; the error carries the first cause.
    Poisoned = 22, "POISONED", EIO, 0;
    /// The operating system or the storage callbacks reported a failure.
    Io = 23, "IO", EIO, 0;
    /// A defect of this library.
    Bug = 24, "BUG", ENOTRECOVERABLE, 0;
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rule of the format that a [`Defect`] breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
#[allow(missing_docs)] // the names are the documentation: each is one rule of MS-VHDX or of docs/format-notes.md
pub enum Rule {
    Signature,
    Truncated,
    Checksum,
    Version,
    LogVersion,
    NoHeader,
    HeaderSequence,
    LogGeometry,
    LogEmpty,
    LogTarget,
    FileTruncated,
    NoRegionTable,
    RegionCount,
    RegionDuplicate,
    RegionRange,
    MissingRegion,
    UnknownRegion,
    Overlap,
    MetadataSignature,
    MetadataCount,
    MetadataDuplicate,
    MetadataRange,
    MetadataFlags,
    UnknownItem,
    MissingItem,
    FileParameters,
    DiskSize,
    SectorSize,
    DiskId,
    Incomplete,
    MissingLocator,
    Locator,
    LocatorType,
    BatState,
    BatReserved,
    BatOffset,
    BatTooSmall,
    SbState,
    MissingSb,
    BeyondEof,
}

impl Rule {
    /// The class of error a broken rule is reported as.
    pub fn kind(self) -> ErrorKind {
        match self {
            Rule::Signature => ErrorKind::NotVhdx,
            Rule::Truncated | Rule::FileTruncated | Rule::BeyondEof => ErrorKind::Truncated,
            Rule::Checksum => ErrorKind::Checksum,
            Rule::Version | Rule::LogVersion | Rule::UnknownRegion | Rule::UnknownItem | Rule::LocatorType => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Corrupt,
        }
    }

    /// The HRESULT, more exact than its kind's for the BAT and the sector bitmap.
    pub fn hresult(self) -> u32 {
        match self {
            Rule::BatState | Rule::BatReserved | Rule::BatOffset | Rule::BatTooSmall => 0xC03A_000A,
            Rule::SbState | Rule::MissingSb => 0xC03A_000C,
            other => other.kind().hresult(),
        }
    }
}

/// A rule of the format broken at a place in a file: what was found, what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at file offset {offset:#x}: {rule:?}: found {found}, wanted {wanted}")]
pub struct Defect {
    /// The rule.
    pub rule: Rule,
    /// The structure in the words of the specification, for example "header 1" or "BAT entry 17".
    pub structure: Cow<'static, str>,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// What the file holds.
    pub found: Cow<'static, str>,
    /// What the rule asks for.
    pub wanted: Cow<'static, str>,
}

impl Defect {
    /// A defect of `structure` at `offset`; `found` and `wanted` complete "found ..., wanted ...".
    pub fn new(
        rule: Rule,
        structure: impl Into<Cow<'static, str>>,
        offset: u64,
        found: impl Into<Cow<'static, str>>,
        wanted: impl Into<Cow<'static, str>>,
    ) -> Self {
        Defect {
            rule,
            structure: structure.into(),
            offset,
            found: found.into(),
            wanted: wanted.into(),
        }
    }
}

#[derive(Debug, Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    path: Option<PathBuf>,
    layer: Option<u32>,
    offset: Option<u64>,
    errno: Option<i32>,
    source: Option<Arc<dyn std::error::Error + Send + Sync + 'static>>,
}

/// A failure: kind, message, where, what to do, cause. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind` with a one-line message (lower case, no full stop).
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            path: None,
            layer: None,
            offset: None,
            errno: None,
            source: None,
        }))
    }

    /// An operating system failure while doing `operation` ("read 4096 bytes").
    pub fn io(operation: impl Into<Cow<'static, str>>, cause: io::Error) -> Self {
        let errno = cause.raw_os_error();
        let kind = match errno {
            Some(libc::ENOSPC) | Some(libc::EDQUOT) | Some(libc::EFBIG) => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        let operation = operation.into();
        let mut error = Error::new(kind, format!("cannot {operation}"));
        error.0.errno = errno;
        error.0.source = Some(Arc::new(cause));
        error
    }

    /// Sets the command or option that fixes it.
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Names the file, unless an inner layer already did.
    pub fn with_path(mut self, path: &Path) -> Self {
        if self.0.path.is_none() {
            self.0.path = Some(path.to_path_buf());
        }
        self
    }

    /// Names the layer (0 = leaf), unless already named.
    pub fn with_layer(mut self, layer: usize) -> Self {
        if self.0.layer.is_none() {
            self.0.layer = u32::try_from(layer).ok();
        }
        self
    }

    /// Names the offset in bytes (virtual for requests, file for structures), unless already named.
    pub fn with_offset(mut self, offset: u64) -> Self {
        if self.0.offset.is_none() {
            self.0.offset = Some(offset);
        }
        self
    }

    /// Sets the cause.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// The error every later write gets after `first` broke the metadata path of an image.
    pub fn poisoned(first: &Error) -> Self {
        let mut error = Error::new(
            ErrorKind::Poisoned,
            "an earlier metadata write failed and this file takes no more writes",
        )
        .with_hint("close and open the file again: the log is replayed and everything flushed is there")
        .with_source(first.clone());
        error.0.path = first.0.path.clone();
        error.0.layer = first.0.layer;
        error
    }

    /// The class of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What fixes it, if known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The file concerned.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The layer concerned, 0 = leaf.
    pub fn layer(&self) -> Option<u32> {
        self.0.layer
    }

    /// The offset concerned, in bytes.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The errno: the operating system's own where it gave one.
    pub fn errno(&self) -> i32 {
        self.0.errno.unwrap_or_else(|| self.0.kind.errno())
    }

    /// The HRESULT Windows uses for the condition, 0 where there is none.
    pub fn hresult(&self) -> u32 {
        self.defect()
            .map_or_else(|| self.0.kind.hresult(), |d| d.rule.hresult())
    }

    /// The broken rule, when the file is what is wrong.
    pub fn defect(&self) -> Option<&Defect> {
        self.0.source.as_deref().and_then(|s| s.downcast_ref::<Defect>())
    }

    /// Message and causes joined by ": ", for logs and command lines.
    pub fn chain_text(&self) -> String {
        use std::error::Error as _;
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(c) = cause {
            text.push_str(": ");
            text.push_str(&c.to_string());
            cause = c.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.0.path {
            // Debug form: control characters in a hostile path are escaped.
            write!(f, "{path:?}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<Defect> for Error {
    fn from(defect: Defect) -> Self {
        let kind = defect.rule.kind();
        let message = match kind {
            ErrorKind::NotVhdx => "not a VHDX file",
            ErrorKind::Unsupported => "the file uses a feature this library does not know",
            ErrorKind::Truncated => "the file is cut short",
            ErrorKind::Checksum => "a checksum does not match",
            _ => "the file breaks a rule of the format",
        };
        let hint = match kind {
            ErrorKind::NotVhdx => "check the path; other formats can be converted with qemu-img convert -O vhdx",
            ErrorKind::Unsupported => "open it with the program that wrote it",
            ErrorKind::Truncated => "copy the file again from its source, or restore it from a backup",
            _ => "run 'avhdx check' on the file for a full report; restore it from a backup if you have one",
        };
        let mut error = Error::new(kind, message).with_offset(defect.offset).with_hint(hint);
        error.0.source = Some(Arc::new(defect));
        error
    }
}

/// Makes an error out of the way: what is left is small enough to be part of its callers.
#[cold]
#[inline(never)]
pub(crate) fn seldom(make: impl FnOnce() -> Error) -> Error {
    make()
}

/// Adds the failed operation to an I/O result.
pub(crate) trait IoContext<T> {
    fn context(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    #[inline]
    fn context(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| seldom(|| Error::io(operation(), e)))
    }
}

/// Adds the path to a failing result.
pub(crate) trait PathContext<T> {
    fn at(self, path: &Path) -> Result<T>;
}

impl<T, E: Into<Error>> PathContext<T> for std::result::Result<T, E> {
    #[inline]
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|e| seldom(|| e.into().with_path(path)))
    }
}
