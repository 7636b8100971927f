use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use tempfile::TempDir;

fn tree() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

fn raw<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn open(path: &Path) -> Arc<dyn Storage> {
    OsFileSystem.open(path, Access::Write).unwrap()
}

#[test]
fn requests_are_whole_or_an_error() {
    let (_dir, path) = tree();
    let file = OsFileSystem.create_new(&path.join("a")).unwrap();
    file.write_at(b"hello", 10).unwrap();
    assert_eq!(file.len().unwrap(), 15);
    let mut buf = [0xff; 15];
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"\0\0\0\0\0\0\0\0\0\0hello");
    assert_eq!(
        file.read_at(&mut buf, 1).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    file.set_len(12).unwrap();
    file.set_len(20).unwrap();
    let mut buf = [0xff; 10];
    file.read_at(&mut buf, 10).unwrap();
    assert_eq!(&buf, b"he\0\0\0\0\0\0\0\0");
    file.flush(Barrier::Payload).unwrap();
    assert!(file.available_space().unwrap().is_some());
    assert!(file.as_raw_fd().is_some());

    let reader = OsFileSystem.open(&path.join("a"), Access::Read).unwrap();
    assert_eq!(reader.id(), file.id());
    assert_eq!(raw(reader.write_at(b"x", 0)), libc::EBADF);
    assert_eq!(raw(OsFileSystem.create_new(&path.join("a"))), libc::EEXIST);
    assert_eq!(raw(OsFileSystem.open(&path.join("b"), Access::Read)), libc::ENOENT);
}

#[test]
fn descriptors_close_on_exec_and_block() {
    let (_dir, path) = tree();
    let created = OsFileSystem.create_new(&path.join("a")).unwrap();
    let opened = open(&path.join("a"));
    let beneath = OsFileSystem.open_beneath(&path, &path.join("a")).unwrap();
    for file in [created, opened, beneath] {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd().unwrap())).unwrap();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0);
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }
}

#[test]
fn what_is_not_a_disk_is_refused_without_blocking() {
    let (_dir, path) = tree();
    let fifo = path.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = path.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [&fifo, &socket, &path, Path::new("/dev/null"), Path::new("/dev/zero")] {
        for access in [Access::Read, Access::Write] {
            assert_eq!(
                raw(OsFileSystem.open(path, access)),
                libc::EINVAL,
                "{path:?} {access:?}"
            );
        }
    }
    for name in ["fifo", "socket", ""] {
        assert_eq!(
            raw(OsFileSystem.open_beneath(&path, &path.join(name))),
            libc::EINVAL,
            "{name}"
        );
    }
}

#[test]
fn beneath_means_beneath_however_links_lead() {
    let (_dir, path) = tree();
    let root = path.join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(path.join("secret"), "s").unwrap();
    fs::write(root.join("base"), "b").unwrap();
    symlink("../../secret", root.join("a/up")).unwrap();
    symlink(path.join("secret"), root.join("a/absolute")).unwrap();
    symlink("..", root.join("a/b/parent")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("root", path.join("alias")).unwrap();
    let try_open = |name: &str| OsFileSystem.open_beneath(&root, &root.join(name));

    for name in ["base", "a/../base", "a/b/parent/../base", "a/b/../../base"] {
        try_open(name).unwrap();
    }
    for name in ["a/up", "a/absolute", "../secret", "a/../../root/base", "a/b/parent/up"] {
        assert_eq!(raw(try_open(name)), libc::EXDEV, "{name}");
    }
    assert_eq!(raw(try_open("loop")), libc::ELOOP);
    assert_eq!(raw(try_open("absent")), libc::ENOENT);
    assert_eq!(raw(OsFileSystem.open_beneath(&root, &path.join("secret"))), libc::EXDEV);
    // The root may itself be reached by a link, and the path have been resolved before.
    let alias = path.join("alias");
    OsFileSystem.open_beneath(&alias, &alias.join("base")).unwrap();
    OsFileSystem.open_beneath(&alias, &root.join("base")).unwrap();
    let file = OsFileSystem.open_beneath(&root, &root.join("base")).unwrap();
    assert_eq!(raw(file.write_at(b"x", 0)), libc::EBADF);
}

#[test]
fn rename_new_never_replaces() {
    let (_dir, path) = tree();
    let (a, b, c) = (path.join("a"), path.join("b"), path.join("c"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    assert_eq!(raw(OsFileSystem.rename_new(&a, &b)), libc::EEXIST);
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(raw(rename_by_link(&a, &b)), libc::EEXIST);
    rename_by_link(&a, &c).unwrap();
    assert!(!a.exists());
    rename_by_link(&c, &a).unwrap();
    OsFileSystem.rename_new(&a, &c).unwrap();
    OsFileSystem.sync_dir(&path).unwrap();
    assert_eq!(fs::read(&c).unwrap(), b"a");
    assert!(!a.exists());
    OsFileSystem.remove(&c).unwrap();
    assert_eq!(raw(OsFileSystem.remove(&c)), libc::ENOENT);
    assert_eq!(raw(OsFileSystem.sync_dir(&b)), libc::ENOTDIR);
}

#[test]
fn lists_and_resolves_paths() {
    let (_dir, path) = tree();
    fs::write(path.join("a"), "").unwrap();
    fs::create_dir(path.join("d")).unwrap();
    symlink("d", path.join("link")).unwrap();
    symlink("nowhere", path.join("dangling")).unwrap();
    let mut all = OsFileSystem.list(&path, 10).unwrap();
    all.sort();
    let names = ["a", "d", "dangling", "link"].map(|n| path.join(n));
    assert_eq!(all, names);
    assert_eq!(OsFileSystem.list(&path, 2).unwrap().len(), 2);
    assert_eq!(
        OsFileSystem.absolute(&path.join("link/../d/./new")).unwrap(),
        path.join("d/new")
    );
    assert_eq!(
        OsFileSystem.absolute(&path.join("link/new")).unwrap(),
        path.join("d/new")
    );
    assert_eq!(raw(OsFileSystem.absolute(&path.join("dangling"))), libc::ENOENT);
    assert_eq!(raw(OsFileSystem.absolute(&path.join("absent/new"))), libc::ENOENT);
    assert!(OsFileSystem.absolute(Path::new("Cargo.toml")).unwrap().is_absolute());
    assert!(OsFileSystem.absolute(Path::new("new-name")).unwrap().is_absolute());
    OsFileSystem.sync_dir(Path::new("")).unwrap();
}

#[test]
fn zeroed_and_released_ranges_read_as_zeros() {
    let (_dir, path) = tree();
    let mut places = vec![path];
    // tmpfs has no FALLOC_FL_ZERO_RANGE.
    let shm = TempDir::new_in("/dev/shm").ok();
    places.extend(shm.iter().map(|d| d.path().to_path_buf()));
    for place in places {
        let file = OsFileSystem.create_new(&place.join("a")).unwrap();
        file.write_at(&[1; 65536], 0).unwrap();
        file.zero_range(100, 10000).unwrap();
        file.zero_range(0, 0).unwrap();
        file.release_range(20000, 20000).unwrap();
        let mut buf = vec![0; 65536];
        file.read_at(&mut buf, 0).unwrap();
        for (index, byte) in buf.iter().enumerate() {
            let zero = (100..10100).contains(&index) || (20000..40000).contains(&index);
            assert_eq!(*byte, u8::from(!zero), "{index}");
        }
        assert_eq!(file.len().unwrap(), 65536);
    }
}

#[test]
fn zeros_are_written_where_the_kernel_cannot_help() {
    let (_dir, path) = tree();
    let file = FileStorage::from_file(
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path.join("a"))
            .unwrap(),
    )
    .unwrap();
    file.write_at(&vec![7; 3 << 20], 0).unwrap();
    file.write_zeros(5, (2 << 20) + 3).unwrap();
    let mut buf = vec![0; 3 << 20];
    file.read_at(&mut buf, 0).unwrap();
    let end = (2 << 20) + 8;
    assert!(buf[..5].iter().chain(&buf[end..]).all(|&b| b == 7));
    assert!(buf[5..end].iter().all(|&b| b == 0));
}

#[test]
fn next_data_finds_what_is_not_a_hole() {
    let (_dir, path) = tree();
    let file = OsFileSystem.create_new(&path.join("a")).unwrap();
    file.set_len(64 << 20).unwrap();
    assert_eq!(file.next_data(0, 64 << 20).unwrap(), None);
    file.write_at(&[1; 65536], 8 << 20).unwrap();
    let found = file.next_data(0, 64 << 20).unwrap().unwrap();
    assert!(found.start <= 8 << 20 && found.end >= (8 << 20) + 65536 && found.end < 64 << 20);
    assert_eq!(file.next_data(found.end, 64 << 20).unwrap(), None);
    assert_eq!(file.next_data(0, 4 << 20).unwrap(), None);
    assert_eq!(
        file.next_data((8 << 20) + 100, (8 << 20) + 200).unwrap(),
        Some((8 << 20) + 100..(8 << 20) + 200)
    );
    assert_eq!(file.next_data(100, 100).unwrap(), None);
    assert_eq!(file.next_data(1 << 40, 2 << 40).unwrap(), None);
}

#[test]
fn the_kernel_copies_ranges() {
    let (_dir, path) = tree();
    let (a, b) = (path.join("a"), path.join("b"));
    fs::write(&a, [3; 10000]).unwrap();
    let source = open(&a);
    let destination = OsFileSystem.create_new(&b).unwrap();
    destination
        .copy_range_from(&*source, 100, 5000, 9000, CopyMethod::Offload)
        .unwrap();
    let copy = fs::read(&b).unwrap();
    assert!(copy.len() == 14000 && copy[..5000].iter().all(|&b| b == 0) && copy[5000..].iter().all(|&b| b == 3));
    assert_eq!(
        destination
            .copy_range_from(&*source, 5000, 0, 9000, CopyMethod::Offload)
            .unwrap_err()
            .kind(),
        io::ErrorKind::UnexpectedEof
    );
    // Whether extents can be shared depends on the file system; when not, it says so.
    if let Err(e) = destination.copy_range_from(&*source, 0, 0, 4096, CopyMethod::Reflink) {
        assert!(matches!(
            e.raw_os_error(),
            Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL)
        ));
    }
    destination
        .copy_range_from(&*source, 0, 0, 0, CopyMethod::Reflink)
        .unwrap();
    let memory = super::super::MemoryFileSystem::new()
        .create_new(Path::new("m"))
        .unwrap();
    assert_eq!(
        raw(destination.copy_range_from(&*memory, 0, 0, 1, CopyMethod::Offload)),
        libc::EOPNOTSUPP
    );
}

#[test]
fn locks_exclude_and_a_refusal_changes_nothing() {
    let (_dir, path) = tree();
    let path = path.join("a");
    fs::write(&path, "").unwrap();
    let (one, two, three) = (
        open(&path),
        open(&path),
        OsFileSystem.open(&path, Access::Read).unwrap(),
    );
    one.lock(LockMode::Read).unwrap();
    two.lock(LockMode::Read).unwrap();
    three.lock(LockMode::Read).unwrap();
    // Refused, and still a reader, so that the others are refused too.
    assert_eq!(raw(one.lock(LockMode::Write)), libc::EAGAIN);
    two.lock(LockMode::None).unwrap();
    three.lock(LockMode::None).unwrap();
    assert_eq!(raw(two.lock(LockMode::Write)), libc::EAGAIN);
    one.lock(LockMode::Write).unwrap();
    assert_eq!(raw(two.lock(LockMode::Read)), libc::EAGAIN);
    assert_eq!(raw(three.lock(LockMode::Read)), libc::EAGAIN);
    one.lock(LockMode::Read).unwrap();
    three.lock(LockMode::Read).unwrap();
    three.lock(LockMode::None).unwrap();
    drop(one);
    two.lock(LockMode::Write).unwrap();
}

#[test]
fn closing_unlocks_even_while_a_copy_of_the_descriptor_lives() {
    let (_dir, path) = tree();
    let path = path.join("a");
    fs::write(&path, "").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let _copy = file.try_clone().unwrap();
    let ours = FileStorage::from_file(file).unwrap();
    ours.lock(LockMode::Write).unwrap();
    drop(ours);
    open(&path).lock(LockMode::Write).unwrap();
}

/// Runs a program of QEMU on an image; whether it succeeded, and what it said.
fn qemu(program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn qemu_respects_our_locks_and_we_respect_qemus() {
    for program in ["qemu-img", "qemu-io"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no {program}");
            return;
        }
    }
    let (_dir, path) = tree();
    // Not a raw image: of those, "qemu-img info" reads so little that it asks for no permission at all.
    let path = path.join("a.vhdx");
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "vhdx"])
        .arg(&path)
        .arg("8M")
        .status();
    assert!(created.unwrap().success());
    let ours = open(&path);
    let info = ["info"];
    let info_shared = ["info", "-U"];
    let write = ["-f", "vhdx", "-c", "write 0 512"];
    let read = ["-r", "-f", "vhdx", "-c", "read 0 512"];

    ours.lock(LockMode::Write).unwrap();
    let (ok, text) = qemu("qemu-img", &info, &path);
    assert!(!ok && text.contains("lock"), "{text}");
    let (ok, text) = qemu("qemu-img", &info_shared, &path);
    assert!(ok, "{text}");
    let (ok, text) = qemu("qemu-io", &read, &path);
    assert!(!ok && text.contains("lock"), "{text}");

    ours.lock(LockMode::Read).unwrap();
    let (ok, text) = qemu("qemu-img", &info, &path);
    assert!(ok, "{text}");
    let (ok, text) = qemu("qemu-io", &read, &path);
    assert!(ok, "{text}");
    let (ok, text) = qemu("qemu-io", &write, &path);
    assert!(!ok && text.contains("lock"), "{text}");

    ours.lock(LockMode::None).unwrap();
    let (ok, text) = qemu("qemu-io", &write, &path);
    assert!(ok, "{text}");

    // A writer that stays: it waits for its next command.
    for (flags, can_read) in [(&[][..], false), (&["-r"][..], true)] {
        let mut writer = Command::new("qemu-io")
            .args(flags)
            .args(["-f", "vhdx"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // It has the file, and its locks, when it has read from it. Asking by locking would get in its way.
        let mut commands = writer.stdin.take().unwrap();
        commands.write_all(b"read 0 512\n").unwrap();
        let mut answers = BufReader::new(writer.stdout.take().unwrap()).lines();
        assert!(answers.any(|line| line.unwrap().contains("read 512/512")));
        let refused = raw(ours.lock(LockMode::Write));
        let reading = ours.lock(LockMode::Read).map_err(|e| e.raw_os_error());
        ours.lock(LockMode::None).unwrap();
        drop(commands);
        answers.for_each(drop);
        writer.wait().unwrap();
        assert_eq!(refused, libc::EAGAIN);
        assert_eq!(reading, if can_read { Ok(()) } else { Err(Some(libc::EAGAIN)) });
    }
    ours.lock(LockMode::Write).unwrap();
}

#[test]
fn block_devices_have_the_length_they_have() {
    let (_dir, path) = tree();
    let backing = path.join("backing");
    File::create(&backing).unwrap().set_len(8 << 20).unwrap();
    let output = Command::new("losetup").args(["-f", "--show"]).arg(&backing).output();
    let device = match output {
        Ok(o) if o.status.success() => PathBuf::from(String::from_utf8(o.stdout).unwrap().trim()),
        _ => {
            eprintln!("SKIPPED: no loop device");
            return;
        }
    };
    let result = std::panic::catch_unwind(|| {
        let file = open(&device);
        assert_eq!(file.len().unwrap(), 8 << 20);
        file.set_len(4 << 20).unwrap();
        assert_eq!(raw(file.set_len(9 << 20)), libc::ENOSPC);
        assert!(!file.grows_with_zeros());
        assert_eq!(file.available_space().unwrap(), Some(0));
        file.write_at(&[1; 8192], 1000).unwrap();
        file.zero_range(1001, 5000).unwrap();
        let _ = file.release_range(4096, 4096);
        let mut buf = [9; 8192];
        file.read_at(&mut buf, 1000).unwrap();
        assert!(buf[0] == 1 && buf[1..5001].iter().all(|&b| b == 0) && buf[8191] == 1);
        assert_eq!(file.next_data(5, 100).unwrap(), Some(5..100));
        assert_eq!(raw(file.write_at(&[1; 4096], 8 << 20)), libc::ENOSPC);
        file.flush(Barrier::Payload).unwrap();
        let node = path.join("node");
        if Command::new("cp")
            .arg("-a")
            .args([&device, &node])
            .status()
            .unwrap()
            .success()
        {
            assert_eq!(open(&node).id(), file.id());
        }
    });
    Command::new("losetup").arg("-d").arg(&device).status().unwrap();
    result.unwrap();
}

/// A file around the page cache, as the file system wants it, or in units of 4096 bytes, which all devices take.
fn direct(path: &Path, units: bool) -> Option<Arc<FileStorage>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap();
    let storage = FileStorage::from_file(file).unwrap();
    if units {
        storage.direct.set(Direct::new(Alignment::USUAL)).unwrap();
    }
    match storage.bypass_cache() {
        Ok(()) => Some(storage),
        Err(e) => {
            eprintln!("SKIPPED: no O_DIRECT: {e}");
            None
        }
    }
}

#[test]
fn around_the_cache_any_request_does_the_same() {
    let (_dir, path) = tree();
    for units in [false, true] {
        let Some(file) = direct(&path.join("a"), units) else {
            return;
        };
        let flags = sys::status_flags(file.file.as_fd()).unwrap();
        assert_ne!(flags & libc::O_DIRECT, 0);
        let mut model: Vec<u8> = Vec::new();
        let mut state = 7u64;
        let mut random = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % limit
        };
        let mut memory = vec![0; (3 << 20) + 8192];
        for step in 0..600 {
            let scale = [1, 512, 4096][random(3) as usize];
            let at = random((4 << 20) / scale) * scale;
            let most = if random(20) == 0 { 2 << 20 } else { 20_000 };
            let len = ((1 + random(most / scale + 1)) * scale) as usize;
            // Aligned memory, or not.
            let skip = memory.as_ptr().align_offset(4096) + random(2) as usize * 3;
            let buf = &mut memory[skip..][..len];
            let end = at as usize + len;
            match random(5) {
                0 | 1 => {
                    buf.fill(step as u8 | 1);
                    file.write_at(buf, at).unwrap();
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].copy_from_slice(buf);
                }
                2 => {
                    let end = end.min(model.len());
                    if at < end as u64 {
                        file.zero_range(at, end as u64 - at).unwrap();
                        model[at as usize..end].fill(0);
                    }
                }
                3 if random(10) == 0 => {
                    model.resize(at as usize, 0);
                    file.set_len(at).unwrap();
                }
                _ if end <= model.len() => {
                    file.read_at(buf, at).unwrap();
                    assert!(buf == &model[at as usize..end], "{step}: {len} at {at}");
                }
                _ => {
                    let error = file.read_at(buf, at).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{step}: {len} at {at}");
                }
            }
            assert_eq!(file.len().unwrap(), model.len() as u64, "{step}");
        }
        file.flush(Barrier::Payload).unwrap();
        assert!(fs::read(path.join("a")).unwrap() == model);
    }
}

#[test]
fn around_the_cache_neighbours_in_a_unit_do_not_undo_each_other() {
    let (_dir, path) = tree();
    let Some(file) = direct(&path.join("a"), true) else {
        return;
    };
    file.write_at(&[0xEE; 4096], 0).unwrap();
    std::thread::scope(|scope| {
        for owner in 0..4u64 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..300u32 {
                    let byte = if owner == 3 { 0 } else { round as u8 | 1 };
                    let at = owner * 1024;
                    match byte {
                        0 => {
                            file.write_at(&[9; 1024], at).unwrap();
                            file.zero_range(at, 1024).unwrap();
                        }
                        _ => file.write_at(&[byte; 1024], at).unwrap(),
                    }
                    let mut found = [0xEE; 1024];
                    file.read_at(&mut found, at).unwrap();
                    assert!(found == [byte; 1024], "{owner}, {round}: {}", found[0]);
                }
            });
        }
    });
}

#[test]
fn around_the_cache_ranges_are_copied() {
    let (_dir, path) = tree();
    let Some(from) = direct(&path.join("a"), false) else {
        return;
    };
    let to = direct(&path.join("b"), false).unwrap();
    let content: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 1000) as u8).collect();
    from.write_at(&content, 0).unwrap();
    to.set_len(4 << 20).unwrap();
    for method in [CopyMethod::Reflink, CopyMethod::Offload] {
        match to.copy_range_from(&*from, 0, 1 << 20, 3 << 20, method) {
            Ok(()) => {
                let mut found = vec![0; content.len()];
                to.read_at(&mut found, 1 << 20).unwrap();
                assert!(found == content, "{method:?}");
                to.zero_range(1 << 20, 3 << 20).unwrap();
            }
            // The caller copies by hand then.
            Err(e) => assert!(
                is_unsupported(&e) || e.raw_os_error() == Some(libc::EXDEV),
                "{method:?}: {e}"
            ),
        }
    }
}

/// Asked of a file that grows meanwhile, as one does that is compacted in use: nothing of it may change. Worth something on
/// a file system that shares extents: TMPDIR.
#[test]
fn asking_whether_extents_can_be_shared_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = OsFileSystem;
    let path = dir.path().join("grows");
    let file = fs.create_new(&path).unwrap();
    file.write_at(&[7; 8192], 0).unwrap();
    let can = file.can_share(&*file);
    std::thread::scope(|scope| {
        scope.spawn(|| (2..20_000).for_each(|n| file.set_len(n * 4096).unwrap()));
        scope.spawn(|| (0..20_000).for_each(|_| assert_eq!(file.can_share(&*file), can)));
    });
    assert_eq!(file.len().unwrap(), 19_999 * 4096);
    let mut buf = [0; 8192];
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [7; 8192]);
    // What it says is so.
    let shared = file.copy_range_from(&*file, 0, 1 << 20, 8192, CopyMethod::Reflink);
    assert_eq!(shared.is_ok(), can, "{shared:?}");
    let other = fs.create_new(&dir.path().join("other")).unwrap();
    let shared = other.copy_range_from(&*file, 0, 0, 8192, CopyMethod::Reflink);
    assert_eq!(shared.is_ok(), other.can_share(&*file), "{shared:?}");
    assert!(!file.can_share(
        &*crate::storage::MemoryFileSystem::new()
            .create_new(Path::new("/m"))
            .unwrap()
    ));
}
