//! What several test files share.
#![allow(dead_code)] // each file uses some of it

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::{Chain, ExtentState, Scope};
use sha2::{Digest, Sha256};

pub const MIB: u64 = 1 << 20;

/// Says that a test did not run: visibly, and where everything must run by failing.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "must run here: {why}");
    println!("SKIPPED: {why}");
}

/// A real image, unpacked into `dir`; `None`, said visibly, where there are none.
pub fn image(dir: &Path, name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let images = std::env::var_os("AVHDX_IMAGES").map_or_else(|| root.join("../shared/images"), PathBuf::from);
    let out = dir.join(name);
    for (packed, program) in [("gz", "gzip"), ("bz2", "bzip2")] {
        let packed = images.join(format!("{name}.{packed}"));
        if packed.exists() {
            let bytes = Command::new(program).arg("-dc").arg(&packed).output().expect(program);
            assert!(bytes.status.success());
            fs::write(&out, bytes.stdout).unwrap();
            return Some(out);
        }
    }
    skip(&format!("no image {name}"));
    None
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256_of_file(path: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path).unwrap();
    let mut buf = vec![0; MIB as usize];
    loop {
        let n = file.read(&mut buf).unwrap();
        if n == 0 {
            return hex(&hasher.finalize());
        }
        hasher.update(&buf[..n]);
    }
}

/// SHA-256 of the whole disk.
pub fn sha256_of_disk(chain: &Chain) -> String {
    let mut hasher = Sha256::new();
    let zeros = vec![0; MIB as usize];
    let mut buf = vec![0; MIB as usize];
    let mut extents = Vec::new();
    let mut at = 0;
    while at < chain.size() {
        extents.clear();
        at += chain
            .block_status(at, chain.size() - at, Scope::Chain, 1000, &mut extents)
            .unwrap();
        for extent in &extents {
            let mut done = 0;
            while done < extent.length {
                let n = (extent.length - done).min(MIB) as usize;
                if extent.state == ExtentState::Data {
                    chain.read(&mut buf[..n], extent.offset + done).unwrap();
                    hasher.update(&buf[..n]);
                } else {
                    hasher.update(&zeros[..n]);
                }
                done += n as u64;
            }
        }
    }
    hex(&hasher.finalize())
}

/// Whether a program can be run; if not, says so.
pub fn have(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|o| o.status.success());
    if !found {
        skip(&format!("no {program}"));
    }
    found
}

/// A python with readers of others; if there is none, says so.
pub fn reader_python() -> Option<String> {
    let python = std::env::var("AVHDX_PYTHON").unwrap_or_else(|_| "python3".into());
    let ready = Command::new(&python)
        .args(["-c", "import pyvhdi, dissect.hypervisor"])
        .output()
        .is_ok_and(|o| o.status.success());
    if !ready {
        skip("no python with libvhdi and dissect.hypervisor (AVHDX_PYTHON)");
    }
    ready.then_some(python)
}
