//! docs/errors.md is total and right, and the header's codes are the same.

use std::path::Path;

use avhdx::ErrorKind;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn errno_name(errno: i32) -> &'static str {
    match errno {
        libc::EMEDIUMTYPE => "EMEDIUMTYPE",
        libc::ENOTSUP => "ENOTSUP",
        libc::EUCLEAN => "EUCLEAN",
        libc::EBADMSG => "EBADMSG",
        libc::EROFS => "EROFS",
        libc::ENOENT => "ENOENT",
        libc::ESTALE => "ESTALE",
        libc::EACCES => "EACCES",
        libc::EINVAL => "EINVAL",
        libc::ELOOP => "ELOOP",
        libc::EBUSY => "EBUSY",
        libc::EAGAIN => "EAGAIN",
        libc::ENOSPC => "ENOSPC",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::ECANCELED => "ECANCELED",
        libc::EIO => "EIO",
        libc::ENOTRECOVERABLE => "ENOTRECOVERABLE",
        other => panic!("errno {other} has no name here"),
    }
}

/// What nbdkit makes of an errno (server/protocol.c, nbd_errno).
fn nbd(kind: ErrorKind) -> &'static str {
    match kind.errno() {
        libc::EROFS | libc::EPERM => "EPERM",
        libc::EIO => "EIO",
        libc::ENOMEM => "ENOMEM",
        libc::EDQUOT | libc::EFBIG | libc::ENOSPC => "ENOSPC",
        libc::ESHUTDOWN => "ESHUTDOWN",
        // Only in answer to a fast zero.
        libc::ENOTSUP if kind == ErrorKind::NotFast => "ENOTSUP",
        _ => "EINVAL",
    }
}

#[test]
fn every_kind_has_its_row_and_every_row_its_kind() {
    let table = read("docs/errors.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.contains("| AVHDX_ERR_"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), ErrorKind::ALL.len());
    for (row, kind) in rows.iter().zip(ErrorKind::ALL) {
        let hresult = match kind.hresult() {
            0 => "-".to_string(),
            number => format!("0x{number:08X}"),
        };
        let wanted = [
            format!("{kind:?}"),
            format!("AVHDX_ERR_{}", kind.name()),
            (*kind as i32).to_string(),
            errno_name(kind.errno()).to_string(),
            nbd(*kind).to_string(),
            "1".to_string(),
            hresult,
        ];
        assert_eq!(row[..7], wanted, "the row of {kind:?}");
        assert!(row.len() == 8 && !row[7].is_empty(), "{kind:?} needs a remedy");
    }
}

#[test]
fn header_has_every_code_with_its_number() {
    let header = read("include/avhdx.h");
    let codes = header.lines().filter(|line| line.starts_with("#define AVHDX_ERR_"));
    assert_eq!(codes.count(), ErrorKind::ALL.len());
    for kind in ErrorKind::ALL {
        let line = format!("#define AVHDX_ERR_{} {}\n", kind.name(), *kind as i32);
        assert!(header.contains(&line), "{line}");
    }
}
