//! Serving a disk with nbdkit.

use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::Chain;

use crate::args::Open;
use crate::{Failure, Outcome};

const PLUGIN: &str = "nbdkit-avhdx-plugin.so";
/// What the control socket's name has more than the NBD socket's.
const CONTROL: &str = ".control";
/// Room for a Unix socket's path, in bytes.
const LONGEST_SOCKET: usize = 107;

/// Becomes nbdkit.
pub(crate) fn serve(
    leaf: &Path,
    socket: Option<PathBuf>,
    read_only: bool,
    run: Option<String>,
    plugin: Option<PathBuf>,
    open: &Open,
) -> Outcome {
    // What cannot be opened is better said before a server is up.
    let chain = Chain::open(leaf, &open.reading())?;
    let (layers, size) = (chain.layer_count(), chain.size());
    drop(chain);
    let leaf = std::path::absolute(leaf)?;
    let socket = match (socket, &run) {
        (Some(socket), _) => Some(std::path::absolute(socket)?),
        (None, None) => Some(default_socket(&leaf)),
        (None, Some(_)) => None,
    };

    let mut nbdkit = Command::new("nbdkit");
    nbdkit.arg("--foreground").arg("--unix");
    nbdkit.arg(socket.as_deref().unwrap_or(Path::new("-")));
    if read_only {
        nbdkit.arg("--readonly");
    }
    if let Some(command) = run {
        nbdkit.arg("--run").arg(command);
    }
    nbdkit
        .arg(plugin.unwrap_or_else(find_plugin))
        .arg(parameter("file=", &leaf))
        .args(read_only.then_some("read-only=on"))
        .args(open.parameters());
    if let Some(socket) = &socket {
        let mut control = socket.clone().into_os_string();
        control.push(CONTROL);
        claim(socket)?;
        claim(Path::new(&control))?;
        nbdkit.arg(parameter("control=", &control));
        let access = if read_only { "read-only" } else { "writable" };
        println!("{}: {layers} layers, {size} bytes, {access}", leaf.display());
        print!("{}", recipes(socket, &control, read_only));
        std::io::stdout().flush()?;
    }
    let error = nbdkit.exec();
    let hint = "install nbdkit: apt-get install nbdkit";
    Err(Failure::Other(format!("nbdkit: {error}"), hint.into()))
}

fn parameter(key: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut parameter = OsString::from(key);
    parameter.push(value);
    parameter
}

/// In the user's own directory for such things, by the name of the disk.
fn default_socket(leaf: &Path) -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let mut name = OsString::from("avhdx-");
    name.push(leaf.file_name().unwrap_or_default());
    name.push(".sock");
    dir.join(name)
}

/// Removes a socket left behind by a server that is no more; one in use is an error.
fn claim(socket: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| {
        let message = format!("{}: {why}", socket.display());
        Err(Failure::Other(message, "choose another with --socket".into()))
    };
    if socket.as_os_str().len() > LONGEST_SOCKET {
        return refuse("a socket's path cannot be so long");
    }
    match std::fs::symlink_metadata(socket) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => refuse(&error.to_string()),
        Ok(found) if !found.file_type().is_socket() => refuse("something else has this name"),
        Ok(_) => match UnixStream::connect(socket) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(std::fs::remove_file(socket)?),
            Err(error) => refuse(&error.to_string()),
            Ok(_) => refuse("another server uses it"),
        },
    }
}

/// The plugin installed with this program, the one of the build it belongs to, or by its name the one nbdkit has.
fn find_plugin() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let installed = [
        format!("../lib/{}-linux-gnu/nbdkit/plugins", std::env::consts::ARCH),
        "../lib64/nbdkit/plugins".to_string(),
        "../lib/nbdkit/plugins".to_string(),
    ];
    let built = ["nbdkit", "../meson/nbdkit", "../../build/nbdkit"].map(str::to_string);
    installed
        .iter()
        .chain(&built)
        .filter_map(|dir| Some(here.parent()?.join(dir).join(PLUGIN)))
        .find(|path| path.exists())
        .unwrap_or_else(|| "avhdx".into())
}

/// A word for a POSIX shell.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,=@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// A path in a URI's query.
fn percent_encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-~".contains(&b);
    path.as_os_str()
        .as_bytes()
        .iter()
        .map(|&b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
    // As they are they would be read as spaces.
    text.replace('\t', "&#9;").replace('\n', "&#10;").replace('\r', "&#13;")
}

/// What to paste where. docs/integration.md has the rest of each story.
fn recipes(socket: &Path, control: &OsStr, read_only: bool) -> String {
    let path = percent_encoded(socket);
    let uri = format!("nbd+unix:///?socket={path}");
    // In an option of QEMU a comma is doubled.
    let server = socket.to_string_lossy().replace(',', ",,");
    let mode = if read_only {
        "read-only=on,reconnect-delay=30"
    } else {
        "discard=unmap,reconnect-delay=30"
    };
    let blockdev = format!("driver=nbd,node-name=avhdx0,server.type=unix,server.path={server},{mode}");
    let guestfish = if read_only { "--ro " } else { "" };
    let xml_mode = if read_only { "<readonly/>" } else { "" };
    let xml_discard = if read_only { "" } else { " discard='unmap'" };
    let xml_path = escaped(&socket.to_string_lossy());
    let blockdev = quoted(OsStr::new(&blockdev));
    let socket = quoted(socket.as_os_str());
    let control = quoted(control);
    format!(
        "uri:        {uri}\n\
         qemu:       qemu-system-x86_64 -blockdev {blockdev} -device virtio-blk-pci,drive=avhdx0\n\
         libvirt:    <disk type='network' device='disk'><driver name='qemu' type='raw'{xml_discard}/><source protocol='nbd'>\
         <host transport='unix' socket='{xml_path}'/></source><target dev='vda' bus='virtio'/>{xml_mode}</disk>\n\
         guestfish:  guestfish {guestfish}--format=raw -a 'nbd://?socket={path}'\n\
         virt-v2v:   nbdcopy '{uri}' disk.img && virt-v2v -i disk disk.img -o local -os .\n\
         nbd-client: nbd-client -unix {socket} /dev/nbd0\n\
         control:    avhdx control {control} info\n"
    )
}
