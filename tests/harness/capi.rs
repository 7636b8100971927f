//! Sequences of C calls: any function, handles that are live or NULL, options of the right and of the wrong call, strings
//! and structures of every kind the header allows, I/O through callbacks onto files in memory.
//!
//! For any input: no call crashes, hangs or reports a defect of the library (BUG). A failure is a negative errno, or
//! NULL, with a code, a name for it and a message. Output handles are NULL after a failure; other outputs are written on
//! success only and never past struct_size or the room given. Each callback's free runs once; when all handles are
//! freed the library holds none.
#![allow(unsafe_code)] // it is the C boundary that is tested

use std::ffi::{c_char, c_int, c_void, CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use avhdx::ffi::*;
use avhdx::options::{CheckpointOptions, CreateOptions};
use avhdx::schema::Kind;
use avhdx::storage::{Access, Barrier, FileSystem, LockMode, MemoryFileSystem, Storage};
use avhdx::{ops, Chain};

use super::images::{options, MIB};
use super::input::{values, Input};
use crate::writer::Vhd;

/// No such directory on the host: what is not on callbacks fails.
const DIR: &str = "/nowhere-avhdx";

/// What a table of callbacks and other callbacks lead to.
struct Context {
    fs: MemoryFileSystem,
    /// Callbacks given to the library and not freed.
    held: AtomicI64,
    /// Files open.
    open: AtomicI64,
}

type File = Arc<dyn Storage>;

fn status(result: io::Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => -libc::EIO,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

unsafe fn context<'a>(ctx: *mut c_void) -> &'a Context {
    unsafe { &*ctx.cast::<Context>() }
}

unsafe fn file<'a>(file: *mut c_void) -> &'a File {
    unsafe { &*file.cast::<File>() }
}

unsafe fn host_path<'a>(path: *const c_char) -> &'a Path {
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

fn give(context: &Context, opened: io::Result<File>, out: *mut *mut c_void) -> c_int {
    status(opened.map(|opened| {
        context.open.fetch_add(1, Ordering::Relaxed);
        unsafe { *out = Box::into_raw(Box::new(opened)).cast() };
    }))
}

unsafe extern "C" fn io_free(ctx: *mut c_void) {
    unsafe { context(ctx) }.held.fetch_sub(1, Ordering::Relaxed);
}

unsafe extern "C" fn io_open(ctx: *mut c_void, path: *const c_char, flags: u32, out: *mut *mut c_void) -> c_int {
    let access = match flags {
        0 => Access::Read,
        AVHDX_IO_WRITE => Access::Write,
        _ => panic!("open with flags {flags}"),
    };
    let context = unsafe { context(ctx) };
    give(context, context.fs.open(unsafe { host_path(path) }, access), out)
}

unsafe extern "C" fn io_close(ctx: *mut c_void, file: *mut c_void) {
    unsafe { context(ctx) }.open.fetch_sub(1, Ordering::Relaxed);
    drop(unsafe { Box::from_raw(file.cast::<File>()) });
}

unsafe extern "C" fn io_pread(_: *mut c_void, f: *mut c_void, buf: *mut c_void, count: usize, offset: u64) -> c_int {
    let buf = unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), count) };
    status(unsafe { file(f) }.read_at(buf, offset))
}

unsafe extern "C" fn io_pwrite(_: *mut c_void, f: *mut c_void, buf: *const c_void, count: usize, at: u64) -> c_int {
    let buf = unsafe { std::slice::from_raw_parts(buf.cast::<u8>(), count) };
    status(unsafe { file(f) }.write_at(buf, at))
}

unsafe extern "C" fn io_flush(_: *mut c_void, f: *mut c_void) -> c_int {
    status(unsafe { file(f) }.flush(Barrier::Payload))
}

unsafe extern "C" fn io_get_size(_: *mut c_void, f: *mut c_void) -> i64 {
    unsafe { file(f) }.len().unwrap() as i64
}

unsafe extern "C" fn io_set_size(_: *mut c_void, f: *mut c_void, size: u64) -> c_int {
    status(unsafe { file(f) }.set_len(size))
}

unsafe extern "C" fn io_zero(_: *mut c_void, f: *mut c_void, offset: u64, len: u64, flags: u32) -> c_int {
    let file = unsafe { file(f) };
    status(match flags {
        0 => file.zero_range(offset, len),
        _ => file.release_range(offset, len),
    })
}

unsafe extern "C" fn io_lock(_: *mut c_void, f: *mut c_void, mode: u32) -> c_int {
    let mode = match mode {
        AVHDX_IO_UNLOCKED => LockMode::None,
        AVHDX_IO_LOCK_READ => LockMode::Read,
        _ => LockMode::Write,
    };
    status(unsafe { file(f) }.lock(mode))
}

unsafe extern "C" fn io_create(ctx: *mut c_void, path: *const c_char, out: *mut *mut c_void) -> c_int {
    let context = unsafe { context(ctx) };
    give(context, context.fs.create_new(unsafe { host_path(path) }), out)
}

unsafe extern "C" fn io_rename(ctx: *mut c_void, from: *const c_char, to: *const c_char) -> c_int {
    let fs = &unsafe { context(ctx) }.fs;
    status(fs.rename_new(unsafe { host_path(from) }, unsafe { host_path(to) }))
}

unsafe extern "C" fn io_unlink(ctx: *mut c_void, path: *const c_char) -> c_int {
    status(unsafe { context(ctx) }.fs.remove(unsafe { host_path(path) }))
}

unsafe extern "C" fn io_sync_dir(_: *mut c_void, _: *const c_char) -> c_int {
    0
}

unsafe extern "C" fn io_list(
    ctx: *mut c_void,
    dir: *const c_char,
    found: Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>,
    arg: *mut c_void,
) -> c_int {
    let names = unsafe { context(ctx) }.fs.list(unsafe { host_path(dir) }, 1000);
    let Ok(names) = names else {
        return -libc::ENOENT;
    };
    for name in names {
        let name = CString::new(name.file_name().unwrap_or_default().as_bytes()).unwrap();
        if unsafe { found.unwrap()(arg, name.as_ptr()) } != 0 {
            break;
        }
    }
    0
}

unsafe extern "C" fn user_free(user: *mut c_void) {
    unsafe { context(user) }.held.fetch_sub(1, Ordering::Relaxed);
}

unsafe extern "C" fn progress_fn(_: *mut c_void, done: u64, total: u64) -> c_int {
    assert!(done <= total, "progress {done} of {total}");
    0
}

unsafe extern "C" fn cancel_fn(_: *mut c_void, _: u64, _: u64) -> c_int {
    1
}

unsafe extern "C" fn issue_fn(_: *mut c_void, issue: *const avhdx_issue) {
    let issue = unsafe { &*issue };
    for text in [issue.rule, issue.structure, issue.found, issue.wanted, issue.message] {
        assert!(!unsafe { CStr::from_ptr(text) }.to_bytes().is_empty());
    }
}

unsafe extern "C" fn log_fn(_: *mut c_void, level: u32, message: *const c_char) {
    assert!((1..=4).contains(&level) && !message.is_null());
}

unsafe extern "C" fn resolve_fn(
    _: *mut c_void,
    query: *const avhdx_parent_query,
    path: *mut c_char,
    size: usize,
) -> c_int {
    let query = unsafe { &*query };
    for i in 0..query.entry_count as usize {
        assert!(!unsafe { *query.keys.add(i) }.is_null() && !unsafe { *query.values.add(i) }.is_null());
    }
    let answer = b"/nowhere-avhdx/base.vhdx\0";
    assert!(size > answer.len());
    unsafe { std::ptr::copy_nonoverlapping(answer.as_ptr().cast(), path, answer.len()) };
    c_int::from(query.linkage[0] & 1)
}

/// The files every sequence starts with.
fn start() -> MemoryFileSystem {
    static START: OnceLock<MemoryFileSystem> = OnceLock::new();
    let start = START.get_or_init(|| {
        let fs = MemoryFileSystem::new();
        let path = |name: &str| Path::new(DIR).join(name);
        let mut create = CreateOptions::default();
        create.size = 3 * MIB + 512;
        create.block_size = MIB as u32;
        create.open = options(&fs);
        ops::create(&path("base.vhdx"), &create).unwrap();
        let chain = Chain::open(&path("base.vhdx"), &options(&fs)).unwrap();
        chain.write(&[1; 9000], 0, false).unwrap();
        let mut checkpoint = CheckpointOptions::default();
        checkpoint.block_size = MIB as u32;
        ops::checkpoint(&chain, &path("a.avhdx"), &checkpoint).unwrap();
        chain.write(&[2; 9000], MIB - 4096, false).unwrap();
        chain.close().unwrap();
        let mut disk = Vhd::new(1, 100 << 10, 64 << 10);
        disk.sectors[5] = Some([7; 512]);
        fs.insert(path("d.vhd"), &disk.encode());
        fs.insert(path("junk.vhdx"), &[7; 4096]);
        fs
    });
    start.snapshot()
}

const PATHS: &[&str] = &[
    "/nowhere-avhdx/a.avhdx",
    "/nowhere-avhdx/a.avhdx",
    "/nowhere-avhdx/a.avhdx",
    "/nowhere-avhdx/base.vhdx",
    "/nowhere-avhdx/base.vhdx",
    "/nowhere-avhdx/b.avhdx",
    "/nowhere-avhdx/b.avhdx",
    "/nowhere-avhdx/c.vhdx",
    "/nowhere-avhdx/d.vhd",
    "/nowhere-avhdx/e.vhd",
    "/nowhere-avhdx/f.raw",
    "/nowhere-avhdx/junk.vhdx",
    "/nowhere-avhdx/../nowhere-avhdx/a.avhdx",
    "/nowhere-avhdx",
    "/nowhere-avhdx/\u{feff}\u{202e}",
    "",
];

/// A string and its pointer, NULL for none.
struct Text(Option<CString>);

impl Text {
    fn of(text: &str) -> Text {
        Text(CString::new(text).ok())
    }

    fn ptr(&self) -> *const c_char {
        self.0.as_ref().map_or(null(), |text| text.as_ptr())
    }
}

/// A structure the library fills, with room behind it that it must leave alone.
struct Room {
    words: Vec<u64>,
    size: usize,
}

impl Room {
    const BYTES: usize = 1024;

    fn new(input: &mut Input<'_>, size: usize) -> Room {
        let size = match input.byte() {
            0 => 0,
            1 => 3,
            2 => 4,
            3 => size - 4,
            4 => size + 8,
            5 => Room::BYTES - 8,
            _ => size,
        };
        let mut words = vec![0xA5A5_A5A5_A5A5_A5A5; Room::BYTES / 8];
        words[0] = words[0] >> 32 << 32 | size as u64;
        Room { words, size }
    }

    fn ptr<T>(&mut self) -> *mut T {
        self.words.as_mut_ptr().cast()
    }

    fn check(&self, result: c_int) {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes[..4], (self.size as u32).to_le_bytes(), "struct_size was changed");
        let from = if result < 0 { 4 } else { self.size.max(4) };
        assert!(
            bytes[from..] == [0xA5; Room::BYTES][from..],
            "written past the room, or by a failure"
        );
    }
}

struct World {
    context: Arc<Context>,
    disks: [*mut avhdx_disk; 3],
    opts: [*mut avhdx_opts; 3],
    jobs: [*mut avhdx_job; 2],
    trees: [*mut avhdx_tree; 2],
    errors: [*mut avhdx_error; 2],
}

/// The checks of a failure.
fn failed(code_returned: i64) {
    let code = unsafe { avhdx_error_code(null()) };
    assert!((-4095..0).contains(&code_returned), "returned {code_returned}");
    let text = |text: *const c_char| match text.is_null() {
        true => String::new(),
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    };
    let message = text(unsafe { avhdx_error_message(null()) });
    assert_ne!(
        code as u32,
        AVHDX_ERR_BUG as u32,
        "{message} {}",
        text(unsafe { avhdx_error_cause(null()) })
    );
    assert!((1..24).contains(&code), "code {code}: {message}");
    assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
    assert!(!avhdx_code_name(code).is_null());
    assert_eq!(
        i64::from(unsafe { avhdx_error_errno(null()) }),
        -code_returned,
        "{message}"
    );
    unsafe {
        avhdx_error_hresult(null());
        avhdx_error_layer(null());
        avhdx_error_offset(null());
    }
    let _ = (
        text(unsafe { avhdx_error_hint(null()) }),
        text(unsafe { avhdx_error_path(null()) }),
    );
    let _ = text(unsafe { avhdx_error_cause(null()) });
}

fn done(result: c_int) -> c_int {
    if result < 0 {
        failed(result.into());
    }
    result
}

fn string(text: *mut c_char) {
    match text.is_null() {
        true => {
            let errno = unsafe { avhdx_error_errno(null()) };
            failed(-i64::from(errno));
        }
        false => {
            assert!(unsafe { CStr::from_ptr(text) }.to_str().is_ok());
            unsafe { avhdx_free(text.cast()) };
        }
    }
}

fn handle<T>(result: c_int, handle: *mut T) {
    assert_eq!(done(result) < 0, handle.is_null());
}

impl World {
    fn user(&self) -> *mut c_void {
        self.context.held.fetch_add(1, Ordering::Relaxed);
        Arc::as_ptr(&self.context).cast_mut().cast()
    }

    fn set_io(&self, input: &mut Input<'_>, opts: *mut avhdx_opts) {
        let mut table = avhdx_io_ops {
            struct_size: size_of::<avhdx_io_ops>() as u32,
            flags: 0,
            free: Some(io_free),
            open: Some(io_open),
            close: Some(io_close),
            pread: Some(io_pread),
            pwrite: Some(io_pwrite),
            flush: Some(io_flush),
            get_size: Some(io_get_size),
            set_size: Some(io_set_size),
            zero: Some(io_zero),
            lock: Some(io_lock),
            create: Some(io_create),
            rename: Some(io_rename),
            unlink: Some(io_unlink),
            sync_dir: Some(io_sync_dir),
            list: Some(io_list),
        };
        // Members that may be missing; close is kept, since files are counted.
        match input.byte() {
            0 => table.zero = None,
            1 => table.lock = None,
            2 => table.create = None,
            3 => table.rename = None,
            4 => table.unlink = None,
            5 => table.sync_dir = None,
            6 => table.list = None,
            7 => table.pwrite = None,
            8 => table.open = None,
            9 => table.flags = 1,
            10 => table.struct_size = std::mem::offset_of!(avhdx_io_ops, zero) as u32,
            _ => {}
        }
        done(unsafe { avhdx_opts_set_io(opts, &raw const table, self.user()) });
    }

    fn path(&self, input: &mut Input<'_>) -> Text {
        match input.byte() {
            0 => Text(None),
            1 => Text(CString::new(b"/nowhere-avhdx/\xFF\xFE".to_vec()).ok()),
            at => Text::of(PATHS[usize::from(at) % PATHS.len()]),
        }
    }

    /// One of the disks, NULL where there is none.
    fn disk(&self, input: &mut Input<'_>) -> *mut avhdx_disk {
        let start = input.below(4);
        // Mostly a live one.
        if start == 3 {
            return self.disks[0];
        }
        (0..3)
            .map(|i| self.disks[(start + i) % 3])
            .find(|disk| !disk.is_null())
            .unwrap_or(null_mut())
    }

    fn set_option(&self, input: &mut Input<'_>, opts: *mut avhdx_opts, kind: Kind) {
        if kind.keys().is_empty() {
            return;
        }
        let key = &kind.keys()[input.below(kind.keys().len())];
        if ["rate", "lock-timeout-ms"].contains(&key.name) {
            // They say how long a call may take.
            let (name, value) = (Text::of(key.name), Text::of("0"));
            done(unsafe { avhdx_opts_set_str(opts, name.ptr(), value.ptr()) });
            return;
        }
        let name = Text::of(key.name);
        let value = match (key.value, input.byte() % 8) {
            (avhdx::schema::ValueType::Choice(words), 0..=6) => words[input.below(words.len())],
            (avhdx::schema::ValueType::Bool, 0..=6) => input.pick(&["on", "off"]),
            (avhdx::schema::ValueType::Size, 0..=6) => {
                input.pick(&["1M", "2M", "3M", "512", "4096", "0", "1025K", "64T", "65T"])
            }
            (avhdx::schema::ValueType::Number, 0..=6) => input.pick(&["0", "1", "2", "7", "18446744073709551615"]),
            (avhdx::schema::ValueType::Path, 0..=6) => PATHS[input.below(PATHS.len())],
            (avhdx::schema::ValueType::PathList, 0..=6) => "/nowhere-avhdx:/x",
            _ => input.pick(&[
                "",
                "on",
                "1M",
                "x",
                "C:=/nowhere-avhdx",
                "::",
                "\u{fffd}",
                "-1",
                "99999999999999999999",
            ]),
        };
        let value = Text::of(value);
        unsafe {
            match input.byte() % 16 {
                0 => done(avhdx_opts_set_u64(opts, name.ptr(), input.pick(&values()))),
                1 => done(avhdx_opts_set_bool(opts, name.ptr(), input.byte().into())),
                2 => done(avhdx_opts_set_str(opts, null(), value.ptr())),
                3 => done(avhdx_opts_set_str(opts, name.ptr(), null())),
                4 => {
                    let line = format!("{}={}", key.name, value.0.as_ref().map_or("", |v| v.to_str().unwrap()));
                    done(avhdx_opts_parse(opts, Text::of(&line).ptr()))
                }
                5 => {
                    let len = input.below(24);
                    let line = input
                        .bytes(len)
                        .into_iter()
                        .filter(|&byte| byte != 0)
                        .collect::<Vec<_>>();
                    done(avhdx_opts_parse(opts, CString::new(line).unwrap().as_ptr()))
                }
                _ => done(avhdx_opts_set_str(opts, name.ptr(), value.ptr())),
            }
        };
    }

    /// Runs a call with options: new ones with keys of its kinds, one of the kept ones, or NULL.
    fn with<T>(
        &self,
        input: &mut Input<'_>,
        kinds: &[Kind],
        line: &str,
        call: impl FnOnce(&mut Input<'_>, *const avhdx_opts) -> T,
    ) -> T {
        match input.byte() % 16 {
            0 => call(input, null()),
            1..=3 => {
                let opts = self.opts[input.below(3)];
                call(input, opts)
            }
            _ => {
                let opts = avhdx_opts_new();
                self.set_io(input, opts);
                if !line.is_empty() {
                    assert_eq!(unsafe { avhdx_opts_parse(opts, Text::of(line).ptr()) }, 0, "{line}");
                }
                for _ in 0..input.below(3) {
                    let kind = input.pick(kinds);
                    self.set_option(input, opts, kind);
                }
                let result = call(input, opts);
                unsafe { avhdx_opts_free(opts) };
                result
            }
        }
    }

    /// Runs a call with a progress callback, NULL, or one that cancels or is not whole; its free must have run then.
    fn progress(&self, input: &mut Input<'_>, call: impl FnOnce(*const avhdx_progress_cb) -> c_int) -> c_int {
        let mut callback = avhdx_progress_cb {
            r#fn: Some(progress_fn),
            user: Arc::as_ptr(&self.context).cast_mut().cast(),
            free: Some(user_free),
        };
        match input.byte() % 16 {
            0..=5 => return done(call(null())),
            6 => callback.r#fn = None,
            7 | 8 => callback.r#fn = Some(cancel_fn),
            _ => {}
        }
        let before = self.context.held.fetch_add(1, Ordering::Relaxed);
        let result = done(call(&raw const callback));
        assert_eq!(
            self.context.held.load(Ordering::Relaxed),
            before,
            "free did not run once"
        );
        result
    }

    fn offset(input: &mut Input<'_>) -> u64 {
        match input.byte() % 8 {
            0 => input.pick(&values()),
            1 => input.u64(),
            _ => u64::from(input.u16()) * 64,
        }
    }

    fn flags(input: &mut Input<'_>) -> u32 {
        match input.byte() {
            0 => input.u64() as u32,
            byte => u32::from(byte % 8) & if byte > 200 { 7 } else { 1 },
        }
    }

    fn open(&mut self, input: &mut Input<'_>) {
        let slot = input.below(3);
        if !self.disks[slot].is_null() {
            return;
        }
        let path = self.path(input);
        let mut disk = std::ptr::dangling_mut::<avhdx_disk>();
        let kind = input.byte() % 8;
        let other = self.path(input);
        let result = self.with(input, &[Kind::Open], "", |input, opts| unsafe {
            match kind {
                0 => {
                    let paths = [path.ptr(), other.ptr(), path.ptr()];
                    let count = input.pick(&[2, 2, 1, 3, 0]);
                    avhdx_open_chain(&raw mut disk, paths.as_ptr(), count, opts)
                }
                1 => avhdx_open_fd(&raw mut disk, -1, path.ptr(), opts),
                _ => avhdx_open(&raw mut disk, path.ptr(), opts),
            }
        });
        handle(result, disk);
        self.disks[slot] = disk;
    }

    fn extents(&self, input: &mut Input<'_>) {
        let canary = avhdx_extent {
            offset: 77,
            length: 77,
            state: 77,
            layer: 77,
            file_offset: 77,
        };
        let mut extents = vec![canary; 6];
        let room = input.below(6);
        let (mut n, mut processed) = (room, 77);
        let disk = self.disk(input);
        let (at, len) = (Self::offset(input), Self::offset(input));
        let diff = input.chance(3);
        let flags = match input.byte() % 4 {
            0 => 0x100 | u32::from(input.byte() % 3) << 16,
            1 => 8,
            2 => Self::flags(input),
            _ => 0,
        };
        let result = unsafe {
            let pointer = if input.chance(32) {
                null_mut()
            } else {
                extents.as_mut_ptr()
            };
            match diff {
                true => avhdx_diff(
                    disk,
                    u32::from(input.byte() % 3),
                    u32::from(input.byte() % 4),
                    at,
                    len,
                    if input.chance(2) { 16 } else { flags },
                    pointer,
                    &raw mut n,
                    &raw mut processed,
                ),
                false => avhdx_block_status(disk, at, len, flags, pointer, &raw mut n, &raw mut processed),
            }
        };
        if done(result) < 0 {
            assert_eq!((n, processed), (room, 77));
        } else {
            assert!(n <= room && processed <= len);
        }
        let from = if result < 0 { 0 } else { n };
        assert!(extents[from..]
            .iter()
            .all(|extent| extent.offset == 77 && extent.file_offset == 77));
    }

    fn data(&self, input: &mut Input<'_>) {
        let disk = self.disk(input);
        let at = Self::offset(input);
        let len = match input.byte() % 4 {
            0 => 0,
            1 => 512,
            2 => usize::from(input.u16()),
            _ => 4096,
        };
        let mut buf = vec![input.byte(); len];
        let pointer = match len == 0 && input.chance(2) || input.chance(32) {
            true => null_mut(),
            false => buf.as_mut_ptr().cast::<c_void>(),
        };
        // Room and a half: two pieces of it.
        let iov = [
            libc::iovec {
                iov_base: pointer,
                iov_len: len / 2,
            },
            libc::iovec {
                iov_base: if pointer.is_null() {
                    pointer
                } else {
                    pointer.wrapping_byte_add(len / 2)
                },
                iov_len: len - len / 2,
            },
        ];
        let flags = Self::flags(input);
        let count = input.pick(&[2, 2, 1, 0, -1]);
        done(unsafe {
            match input.byte() % 8 {
                0 => avhdx_preadv(disk, iov.as_ptr(), count, at),
                1 => avhdx_pwritev(disk, iov.as_ptr(), count, at, flags),
                2 => avhdx_layer_pread(disk, input.byte().into(), pointer, len, at),
                3 => avhdx_zero(disk, at, Self::offset(input), flags),
                4 => avhdx_discard(disk, at, Self::offset(input), flags),
                5 => avhdx_pread(disk, pointer, len, at),
                _ => avhdx_pwrite(disk, pointer, len, at, flags),
            }
        });
    }

    fn inform(&self, input: &mut Input<'_>) {
        let disk = self.disk(input);
        let layer = u32::from(input.byte() % 4);
        unsafe {
            match input.byte() % 10 {
                0 => {
                    let mut room = Room::new(input, size_of::<avhdx_info>());
                    let result = avhdx_get_info(disk, room.ptr());
                    room.check(done(result));
                }
                1 => {
                    let mut room = Room::new(input, size_of::<avhdx_layer_info>());
                    let result = avhdx_layer_info(disk, layer, room.ptr());
                    room.check(done(result));
                }
                2 => {
                    let mut room = Room::new(input, size_of::<avhdx_limits>());
                    let result = avhdx_get_limits(disk, room.ptr());
                    room.check(done(result));
                }
                3 => {
                    let path = self.path(input);
                    let mut room = Room::new(input, size_of::<avhdx_probe>());
                    let result = avhdx_probe(path.ptr(), room.ptr());
                    room.check(done(result));
                }
                4 => string(avhdx_info_json(disk)),
                5 => {
                    let path = avhdx_layer_path(disk, layer);
                    if path.is_null() {
                        failed(-i64::from(avhdx_error_errno(null())));
                    } else {
                        assert!(CStr::from_ptr(path).to_bytes().starts_with(b"/"));
                    }
                }
                6 => drop(done(avhdx_layer_fd(disk, layer))),
                7 => {
                    let size = avhdx_get_size(disk);
                    if size < 0 {
                        failed(size);
                    }
                    assert!(size != 0 && done(avhdx_layer_count(disk)) != 0);
                }
                8 => {
                    let mut size = 77;
                    if done(avhdx_min_size(disk, &raw mut size)) < 0 {
                        assert_eq!(size, 77);
                    }
                }
                _ => {
                    let kind = Text::of(input.pick(&["open", "create", "merge", "nonsense", ""]));
                    string(avhdx_schema_json(kind.ptr()));
                    assert!(avhdx_has(kind.ptr()) <= 1);
                }
            }
        }
    }

    fn change(&self, input: &mut Input<'_>) {
        let disk = self.disk(input);
        let path = self.path(input);
        let (one, two) = (u32::from(input.byte() % 3), u32::from(input.byte() % 4));
        match input.byte() % 12 {
            0 | 1 => drop(self.with(input, &[Kind::Checkpoint], "block-size=1M", |_, opts| {
                done(unsafe { avhdx_checkpoint(disk, path.ptr(), opts) })
            })),
            2 | 3 => drop(self.with(input, &[Kind::Merge], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_merge(disk, one, two, opts, cb) })
            })),
            4 => drop(self.with(input, &[Kind::Compact], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_compact(disk, opts, cb) })
            })),
            5 => {
                let size = u64::from(input.u16()) * 512;
                self.with(input, &[Kind::Resize], "", |_, opts| {
                    done(unsafe { avhdx_resize(disk, size, opts) })
                });
            }
            6 => drop(self.with(input, &[Kind::Revert], "", |_, opts| {
                done(unsafe { avhdx_revert(disk, one, path.ptr(), opts) })
            })),
            7 => drop(self.with(input, &[Kind::Delete], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_delete_layer(disk, one, opts, cb) })
            })),
            8 => drop(self.with(input, &[Kind::Rebase], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_rebase(disk, path.ptr(), opts, cb) })
            })),
            9 => drop(self.with(input, &[Kind::Detach], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_detach(disk, opts, cb) })
            })),
            10 => drop(done(unsafe { avhdx_delete_branch(disk, path.ptr()) })),
            _ => drop(self.with(input, &[Kind::Convert], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_convert(disk, path.ptr(), opts, cb) })
            })),
        }
    }

    fn items(&self, input: &mut Input<'_>) {
        let disk = self.disk(input);
        let id = [input.byte() % 4; 16];
        let pointer = if input.chance(16) { null() } else { id.as_ptr() };
        let mut buf = [7u8; 64];
        let len = input.below(65);
        unsafe {
            match input.byte() % 6 {
                0 => string(avhdx_meta_list(disk)),
                1 => {
                    let found = avhdx_meta_get(disk, pointer, buf.as_mut_ptr().cast(), len);
                    if found < 0 {
                        failed(found);
                    }
                    assert!(buf[len..].iter().all(|&byte| byte == 7));
                }
                2 | 3 => drop(done(avhdx_meta_set(
                    disk,
                    pointer,
                    buf.as_ptr().cast(),
                    len,
                    Self::flags(input),
                ))),
                4 => drop(done(avhdx_meta_delete(disk, pointer))),
                _ => {
                    done(avhdx_reset_disk_id(disk, pointer));
                    done(avhdx_set_physical_sector_size(disk, input.pick(&[512, 4096, 0, 1024])));
                }
            }
        }
    }

    fn files(&self, input: &mut Input<'_>) {
        let (path, other) = (self.path(input), self.path(input));
        match input.byte() % 10 {
            0 | 1 => {
                let line = input.pick(&[
                    "size=2M,block-size=1M",
                    "size=1M,block-size=1M,type=fixed",
                    "type=differencing,block-size=1M,parent=/nowhere-avhdx/base.vhdx",
                    "type=differencing,block-size=1M,parent=/nowhere-avhdx/a.avhdx",
                    "",
                ]);
                self.with(input, &[Kind::Create, Kind::Open], line, |_, opts| {
                    done(unsafe { avhdx_create(path.ptr(), opts) })
                });
            }
            2 => drop(self.with(input, &[Kind::Merge, Kind::Open], "", |input, opts| {
                self.progress(input, |cb| unsafe {
                    avhdx_merge_path(path.ptr(), other.ptr(), opts, cb)
                })
            })),
            3 => {
                let user = self.user();
                let callback = avhdx_issue_cb {
                    r#fn: if input.chance(16) { None } else { Some(issue_fn) },
                    user,
                    free: Some(user_free),
                };
                let mut room = Room::new(input, size_of::<avhdx_check>());
                let result = self.with(input, &[Kind::Check, Kind::Open], "", |_, opts| unsafe {
                    avhdx_check(path.ptr(), opts, room.ptr(), &raw const callback)
                });
                room.check(done(result));
            }
            4 => {
                let mut room = Room::new(input, size_of::<avhdx_repair>());
                let result = self.with(input, &[Kind::Repair, Kind::Open], "", |_, opts| unsafe {
                    avhdx_repair(path.ptr(), opts, room.ptr(), null())
                });
                room.check(done(result));
            }
            5 => drop(self.with(input, &[Kind::Open], "", |_, opts| {
                done(unsafe { avhdx_repair_undo(path.ptr(), other.ptr(), opts) })
            })),
            6 => {
                let mut room = Room::new(input, size_of::<avhdx_pending>());
                let result = self.with(input, &[Kind::Open], "", |_, opts| unsafe {
                    avhdx_pending(path.ptr(), opts, room.ptr())
                });
                room.check(done(result));
            }
            7 => drop(self.with(input, &[Kind::Merge, Kind::Open], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_resume(path.ptr(), opts, cb) })
            })),
            8 => drop(self.with(input, &[Kind::Migrate, Kind::Open], "", |input, opts| {
                self.progress(input, |cb| unsafe { avhdx_migrate(path.ptr(), other.ptr(), opts, cb) })
            })),
            _ => drop(self.with(input, &[Kind::Reparent, Kind::Open], "", |_, opts| {
                done(unsafe { avhdx_reparent(path.ptr(), other.ptr(), opts) })
            })),
        }
    }

    const OPERATIONS: &'static [&'static str] = &[
        "merge",
        "delete",
        "rebase",
        "detach",
        "convert",
        "compact",
        "checkpoint",
        "nonsense",
    ];

    /// Options that an operation needs, and whose others are.
    fn keys(operation: &str) -> (&'static str, Kind) {
        match operation {
            "merge" => ("top=0,base=1", Kind::Merge),
            "delete" => ("top=0", Kind::Delete),
            "rebase" => ("onto=/nowhere-avhdx/base.vhdx", Kind::Rebase),
            "convert" => ("out=/nowhere-avhdx/c.vhdx", Kind::Convert),
            "compact" => ("", Kind::Compact),
            _ => ("", Kind::Job),
        }
    }

    fn job(&mut self, input: &mut Input<'_>) {
        let slot = input.below(2);
        let job = self.jobs[slot];
        match input.byte() % 8 {
            0..=2 if job.is_null() => {
                let disk = self.disk(input);
                let name = input.pick(World::OPERATIONS);
                let (line, kind) = World::keys(name);
                let operation = Text::of(name);
                let mut job = std::ptr::dangling_mut::<avhdx_job>();
                let result = self.with(input, &[kind], line, |_, opts| unsafe {
                    avhdx_job_new(&raw mut job, disk, operation.ptr(), opts)
                });
                handle(result, job);
                self.jobs[slot] = job;
            }
            3 => drop(done(unsafe { avhdx_job_cancel(job) })),
            4 => {
                let mut room = Room::new(input, size_of::<avhdx_progress>());
                let result = unsafe { avhdx_job_progress(job, room.ptr()) };
                room.check(done(result));
            }
            5 => {
                unsafe { avhdx_job_free(job) };
                self.jobs[slot] = null_mut();
            }
            _ => {
                let mut room = Room::new(input, size_of::<avhdx_progress>());
                let bytes = input.pick(&[0, 1, 4096, MIB, u64::MAX]);
                let result = unsafe { avhdx_job_step(job, bytes, room.ptr()) };
                room.check(done(result));
            }
        }
    }

    fn plan(&self, input: &mut Input<'_>) {
        let disk = self.disk(input);
        let name = input.pick(World::OPERATIONS);
        let (line, kind) = World::keys(name);
        let operation = Text::of(name);
        self.with(input, &[kind, Kind::Job], line, |input, opts| unsafe {
            if input.chance(2) {
                return string(avhdx_plan_json(disk, operation.ptr(), opts));
            }
            let mut room = Room::new(input, size_of::<avhdx_plan>());
            let result = avhdx_plan(disk, operation.ptr(), opts, room.ptr());
            room.check(done(result));
        });
    }

    fn contents(&self, input: &mut Input<'_>) {
        let (a, b) = (self.disk(input), self.disk(input));
        if input.chance(2) {
            let mut first = 77;
            let flags = if input.chance(4) { Self::flags(input) } else { 0 };
            let result = self.with(input, &[Kind::Compare], "", |input, opts| {
                self.progress(input, |cb| unsafe {
                    avhdx_compare(a, b, flags, &raw mut first, opts, cb)
                })
            });
            assert!(result >= 0 || first == 77);
        } else {
            let mut out = [7u8; 96];
            let room = input.pick(&[32, 64, 64, 31, 0]);
            let mut len = room;
            let algorithm = Text::of(input.pick(&["sha256", "sha512", "md5", ""]));
            let layer = u32::from(input.byte() % 3);
            let result = self.with(input, &[Kind::Digest], "", |input, opts| {
                self.progress(input, |cb| unsafe {
                    avhdx_digest(a, layer, algorithm.ptr(), out.as_mut_ptr(), &raw mut len, opts, cb)
                })
            });
            assert!(len <= room);
            let from = if result < 0 { 0 } else { len };
            assert!(out[from..].iter().all(|&byte| byte == 7));
        }
    }

    fn tree(&mut self, input: &mut Input<'_>) {
        let slot = input.below(2);
        let tree = self.trees[slot];
        let index = match input.byte() % 8 {
            7 => u32::MAX,
            byte => byte.into(),
        };
        unsafe {
            match input.byte() % 10 {
                0..=2 if tree.is_null() => {
                    let dir = match input.chance(4) {
                        true => self.path(input),
                        false => Text::of(DIR),
                    };
                    let dirs = [dir.ptr()];
                    let mut tree = std::ptr::dangling_mut::<avhdx_tree>();
                    let count = usize::from(!input.chance(8));
                    let result = self.with(input, &[Kind::Tree], "", |_, opts| {
                        avhdx_tree_scan(&raw mut tree, dirs.as_ptr(), count, opts)
                    });
                    handle(result, tree);
                    self.trees[slot] = tree;
                }
                3 => {
                    avhdx_tree_free(tree);
                    self.trees[slot] = null_mut();
                }
                4 => {
                    let mut room = Room::new(input, size_of::<avhdx_tree_node>());
                    let result = avhdx_tree_node(tree, index, room.ptr());
                    room.check(done(result));
                }
                5 => {
                    let mut children = [77u32; 5];
                    let room = input.below(5);
                    let mut n = room;
                    let result = avhdx_tree_children(tree, index, children.as_mut_ptr(), &raw mut n);
                    let from = if done(result) < 0 { 0 } else { n.min(room) };
                    assert!(children[from..].iter().all(|&child| child == 77));
                }
                6 => string(avhdx_tree_json(tree)),
                7 => {
                    let path = self.path(input);
                    let found = avhdx_tree_find(tree, path.ptr());
                    if found < 0 {
                        failed(found);
                    }
                    let count = avhdx_tree_count(tree);
                    if count < 0 {
                        failed(count);
                    }
                    assert!(found < 0 || found < count);
                }
                8 => drop(done(avhdx_tree_fix(tree, index))),
                _ => {
                    if avhdx_tree_path(tree, index).is_null() {
                        failed(-i64::from(avhdx_error_errno(null())));
                    }
                }
            }
        }
    }

    fn options(&mut self, input: &mut Input<'_>) {
        let slot = input.below(3);
        let opts = self.opts[slot];
        match input.byte() % 8 {
            0 => {
                unsafe { avhdx_opts_free(opts) };
                self.opts[slot] = null_mut();
            }
            1 | 2 if opts.is_null() => self.opts[slot] = avhdx_opts_new(),
            3 => self.set_io(input, opts),
            4 => drop(done(unsafe { avhdx_opts_set_io(opts, null(), null_mut()) })),
            5 => {
                let callback = avhdx_resolve_cb {
                    r#fn: if input.chance(8) { None } else { Some(resolve_fn) },
                    user: self.user(),
                    free: Some(user_free),
                };
                done(unsafe { avhdx_opts_set_resolver(opts, &raw const callback) });
                if input.chance(4) {
                    done(unsafe { avhdx_opts_set_resolver(opts, null()) });
                }
            }
            _ => {
                let kind = input.pick(Kind::ALL);
                self.set_option(input, opts, kind);
            }
        }
    }

    fn others(&mut self, input: &mut Input<'_>) {
        let slot = input.below(2);
        unsafe {
            match input.byte() % 4 {
                0 => {
                    avhdx_error_free(self.errors[slot]);
                    self.errors[slot] = avhdx_error_dup(avhdx_last_error());
                }
                1 => {
                    let error = self.errors[slot];
                    let _ = (
                        avhdx_error_code(error),
                        avhdx_error_message(error),
                        avhdx_error_cause(error),
                    );
                    avhdx_code_name(input.byte().into());
                }
                2 => {
                    let callback = avhdx_log_cb {
                        r#fn: if input.chance(8) { None } else { Some(log_fn) },
                        // For the whole process, so that other threads may be in it still when it is replaced.
                        user: null_mut(),
                        free: None,
                    };
                    done(avhdx_set_log(&raw const callback, u32::from(input.byte() % 6)));
                }
                _ => drop(done(avhdx_set_log(null(), 0))),
            }
        }
    }

    fn close(&mut self, input: &mut Input<'_>) {
        let slot = input.below(3);
        let disk = self.disks[slot];
        match input.chance(3) {
            true => unsafe { avhdx_abort(disk) },
            false => drop(done(unsafe { avhdx_close(disk) })),
        }
        self.disks[slot] = null_mut();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0..=4 => self.open(input),
            5..=10 => self.data(input),
            11 => drop(done(unsafe { avhdx_flush(self.disk(input)) })),
            12 | 13 => self.close(input),
            14..=17 => self.change(input),
            18 => self.inform(input),
            19 => self.extents(input),
            20 => self.items(input),
            21..=23 => self.files(input),
            24..=26 => self.job(input),
            27 => self.plan(input),
            28 => self.contents(input),
            29 => self.tree(input),
            30 => self.options(input),
            _ => self.others(input),
        }
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let context = Arc::new(Context {
        fs: start(),
        held: AtomicI64::new(0),
        open: AtomicI64::new(0),
    });
    let mut world = World {
        context,
        disks: [null_mut(); 3],
        opts: [null_mut(); 3],
        jobs: [null_mut(); 2],
        trees: [null_mut(); 2],
        errors: [null_mut(); 2],
    };
    for _ in 0..40 {
        if input.more() {
            world.step(&mut input);
        }
    }
    // Handles in any order; disks go before or after their jobs.
    unsafe {
        if input.chance(2) {
            world
                .jobs
                .iter_mut()
                .for_each(|job| avhdx_job_free(std::mem::replace(job, null_mut())));
        }
        for disk in world.disks {
            done(avhdx_close(disk));
        }
        world.jobs.iter().for_each(|&job| avhdx_job_free(job));
        world.trees.iter().for_each(|&tree| avhdx_tree_free(tree));
        world.opts.iter().for_each(|&opts| avhdx_opts_free(opts));
        world.errors.iter().for_each(|&error| avhdx_error_free(error));
        avhdx_set_log(null(), 0);
    }
    assert_eq!(
        world.context.held.load(Ordering::Relaxed),
        0,
        "callbacks whose free did not run"
    );
    assert_eq!(world.context.open.load(Ordering::Relaxed), 0, "files left open");
}
