//! Between the Windows paths of a parent locator and the host's (MS-VHDX 2.2.1; docs/format-notes.md "Parent paths").

use std::path::{Component, Path, PathBuf};

/// Where the text of a locator's path points on this host, or why nowhere.
pub(crate) fn relative_to_host(text: &str, child_dir: &Path) -> Result<PathBuf, String> {
    let path = text.replace('\\', "/");
    if path.starts_with('/') || has_drive(&path) {
        return Err("not a relative path".into());
    }
    Ok(child_dir.join(path.strip_prefix("./").unwrap_or(&path)))
}

/// The same for absolute and volume paths. `map` gives Windows prefixes and the directories that stand for them.
pub(crate) fn absolute_to_host(text: &str, map: &[(String, PathBuf)]) -> Result<PathBuf, String> {
    let normal = normalise(text);
    let hit = map
        .iter()
        .filter_map(|(prefix, dir)| strip_prefix(&normal, &normalise(prefix)).map(|rest| (prefix.len(), dir, rest)))
        .max_by_key(|(len, ..)| *len);
    if let Some((_, dir, rest)) = hit {
        return Ok(dir.join(rest.trim_start_matches('/')));
    }
    if normal.starts_with("//./") || normal.to_ascii_lowercase().starts_with("//?/globalroot") {
        return Err("a device path".into());
    }
    if normal.starts_with("//?/") || normal.starts_with("//") || has_drive(&normal) {
        let prefix = prefix_of(&normal).replace('/', "\\");
        return Err(format!("no drive-map for {prefix:?}"));
    }
    if normal.starts_with('/') {
        return Ok(PathBuf::from(normal));
    }
    Err("not an absolute path".into())
}

/// One form for `\\?\C:\x`, `C:\x`, `\\?\UNC\server\share` and `\\server\share`.
fn normalise(text: &str) -> String {
    let path = text.replace('\\', "/");
    if let Some(rest) = path.strip_prefix("//?/") {
        if has_drive(rest) {
            return rest.to_string();
        }
        if rest.get(..4).is_some_and(|unc| unc.eq_ignore_ascii_case("UNC/")) {
            return format!("//{}", &rest[4..]);
        }
    }
    path
}

fn has_drive(path: &str) -> bool {
    let mut bytes = path.bytes();
    matches!((bytes.next(), bytes.next()), (Some(letter), Some(b':')) if letter.is_ascii_alphabetic())
}

/// What follows `prefix`, ignoring ASCII case, at the end of a component.
fn strip_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let prefix = prefix.trim_end_matches('/');
    let head = path.get(..prefix.len())?;
    let rest = &path[prefix.len()..];
    (head.eq_ignore_ascii_case(prefix) && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
}

/// The drive, share or volume of a normalised path.
fn prefix_of(path: &str) -> &str {
    if has_drive(path) {
        return &path[..2];
    }
    let parts = if path.starts_with("//?/") {
        4
    } else {
        4.min(path.split('/').count())
    };
    let end = path.match_indices('/').nth(parts - 1).map_or(path.len(), |(at, _)| at);
    &path[..end]
}

/// Last component of a Windows path.
pub(crate) fn file_name(text: &str) -> Option<&str> {
    text.rsplit(['\\', '/'])
        .next()
        .filter(|name| !name.is_empty() && *name != "." && *name != "..")
}

/// The paths to record in the child for its parent: absolute and relative. Both paths are absolute.
pub(crate) fn record(child_dir: &Path, parent: &Path, map: &[(String, PathBuf)]) -> (String, String) {
    let mapped = map
        .iter()
        .filter_map(|(prefix, dir)| {
            parent
                .strip_prefix(dir)
                .ok()
                .map(|rest| (dir.as_os_str().len(), prefix, rest))
        })
        .max_by_key(|(len, ..)| *len)
        .map(|(_, prefix, rest)| format!("{}\\{}", prefix.trim_end_matches('\\'), windows(rest)));
    let absolute = mapped.unwrap_or_else(|| windows(parent));
    let common = child_dir
        .components()
        .zip(parent.components())
        .take_while(|(a, b)| a == b)
        .count();
    let mut relative: Vec<String> = child_dir.components().skip(common).map(|_| "..".to_string()).collect();
    if relative.is_empty() {
        relative.push(".".into());
    }
    relative.extend(
        parent
            .components()
            .skip(common)
            .map(|c| c.as_os_str().to_string_lossy().into_owned()),
    );
    (absolute, relative.join("\\"))
}

fn windows(path: &Path) -> String {
    let mut text = String::new();
    for component in path.components() {
        match component {
            Component::RootDir => text.push('\\'),
            other => {
                if !text.is_empty() && !text.ends_with('\\') {
                    text.push('\\');
                }
                text.push_str(&other.as_os_str().to_string_lossy());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Vec<(String, PathBuf)> {
        vec![
            ("C:".into(), "/mnt/c".into()),
            ("C:\\VMs".into(), "/vms".into()),
            ("\\\\srv\\share".into(), "/mnt/s".into()),
            (
                "\\\\?\\Volume{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}".into(),
                "/mnt/v".into(),
            ),
        ]
    }

    #[test]
    fn windows_paths_lead_to_mapped_directories() {
        for (text, wanted) in [
            ("C:\\x\\y.vhdx", "/mnt/c/x/y.vhdx"),
            ("\\\\?\\c:\\x.vhdx", "/mnt/c/x.vhdx"),
            ("C:\\VMs\\y.vhdx", "/vms/y.vhdx"),
            ("\\\\SRV\\share\\y.vhdx", "/mnt/s/y.vhdx"),
            ("\\\\?\\UNC\\srv\\share\\y.vhdx", "/mnt/s/y.vhdx"),
            ("\\\\?\\Volume{0EBA351E-5634-46d6-a8cf-4ddc2d6ac0b9}\\z", "/mnt/v/z"),
            ("\\srv\\disks\\base.vhdx", "/srv/disks/base.vhdx"),
        ] {
            assert_eq!(absolute_to_host(text, &map()), Ok(PathBuf::from(wanted)), "{text}");
        }
        for text in ["D:\\x", "\\\\other\\share\\x", "\\\\.\\PhysicalDrive0", "x\\y", "C:x"] {
            assert!(absolute_to_host(text, &map()[1..]).is_err(), "{text}");
        }
        assert_eq!(absolute_to_host("D:\\x", &[]), Err("no drive-map for \"D:\"".into()));
        assert_eq!(
            absolute_to_host("\\\\a\\b\\c", &[]),
            Err("no drive-map for \"\\\\\\\\a\\\\b\"".into())
        );
    }

    #[test]
    fn relative_paths_start_at_the_child() {
        let dir = Path::new("/vm/disks");
        assert_eq!(relative_to_host(".\\a.vhdx", dir), Ok("/vm/disks/a.vhdx".into()));
        assert_eq!(
            relative_to_host("..\\..\\a.vhdx", dir),
            Ok("/vm/disks/../../a.vhdx".into())
        );
        assert!(relative_to_host("\\a.vhdx", dir).is_err());
        assert!(relative_to_host("C:a.vhdx", dir).is_err());
    }

    #[test]
    fn recorded_paths_lead_back() {
        let dir = Path::new("/vm/disks/snap");
        for parent in ["/vm/disks/snap/a.vhdx", "/vm/disks/a.vhdx", "/other/a b.vhdx"] {
            let (absolute, relative) = record(dir, Path::new(parent), &[]);
            assert_eq!(absolute_to_host(&absolute, &[]), Ok(PathBuf::from(parent)));
            let back = relative_to_host(&relative, dir).unwrap();
            let mut plain = PathBuf::new();
            for c in back.components() {
                match c {
                    Component::ParentDir => drop(plain.pop()),
                    Component::CurDir => {}
                    c => plain.push(c),
                }
            }
            assert_eq!(plain, Path::new(parent));
        }
        assert_eq!(record(dir, Path::new("/mnt/c/x/y.vhdx"), &map()).0, "C:\\x\\y.vhdx");
        assert_eq!(record(dir, Path::new("/vm/disks/snap/a.vhdx"), &[]).1, ".\\a.vhdx");
    }
}
