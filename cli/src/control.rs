//! The control socket of the nbdkit plugin, from the client's side: a line with a verb, lines "key value", an empty
//! line; then lines of progress and "done" or "failed". nbdkit-avhdx-plugin(1) describes it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::ValueEnum;

use crate::args::{Control, Merging};
use crate::bar::Bar;
use crate::{Failure, Outcome};

pub(crate) fn control(socket: &Path, export: Option<&str>, verb: Control) -> Outcome {
    let stream = UnixStream::connect(socket).map_err(|error| {
        let message = format!("{}: {error}", socket.display());
        Failure::Other(message, "avhdx serve, and nbdkit with control=SOCKET, make one".into())
    })?;
    let mut request = Request::default();
    request.verb(&verb)?;
    if let Some(export) = export {
        request.add("export", export.as_bytes())?;
    }
    request.text.push(b'\n');
    // A server with too many clients has hung up already; its answer says so.
    let _ = (&stream).write_all(&request.text);
    let done = answer(stream, matches!(verb, Control::Merge { .. }))?;
    match verb {
        Control::Info => {
            let json: serde_json::Value = serde_json::from_str(&done)
                .map_err(|error| Failure::Other(format!("the server's answer is not JSON: {error}"), String::new()))?;
            println!("{json:#}");
        }
        _ => println!("writes go to {done}"),
    }
    Ok(0)
}

#[derive(Default)]
struct Request {
    text: Vec<u8>,
}

impl Request {
    fn add(&mut self, key: &str, value: &[u8]) -> Result<(), Failure> {
        if value.contains(&b'\n') {
            return Err(Failure::Usage(format!(
                "{key}: a name with a line break cannot be sent"
            )));
        }
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(b' ');
        self.text.extend_from_slice(value);
        self.text.push(b'\n');
        Ok(())
    }

    fn verb(&mut self, verb: &Control) -> Result<(), Failure> {
        match verb {
            Control::Info => self.text.extend_from_slice(b"info\n"),
            Control::Checkpoint { new, block_size } => {
                self.text.extend_from_slice(b"checkpoint\n");
                self.add("to", std::path::absolute(new)?.as_os_str().as_bytes())?;
                if let Some(size) = block_size {
                    self.add("block-size", size.to_string().as_bytes())?;
                }
            }
            Control::Merge { child, into, merging } => {
                self.text.extend_from_slice(b"merge\n");
                for (key, layer) in [("child", child), ("into", into)] {
                    if let Some(layer) = layer {
                        self.layer(key, layer)?;
                    }
                }
                self.merging(merging)?;
            }
        }
        Ok(())
    }

    /// A number, or a path that the server shall understand too.
    fn layer(&mut self, key: &str, layer: &str) -> Result<(), Failure> {
        match layer.parse::<u32>() {
            Ok(number) => self.add(key, number.to_string().as_bytes()),
            Err(_) => self.add(key, std::path::absolute(layer)?.as_os_str().as_bytes()),
        }
    }

    fn merging(&mut self, merging: &Merging) -> Result<(), Failure> {
        if let Some(mode) = merging.mode.to_possible_value() {
            self.add("mode", mode.get_name().as_bytes())?;
        }
        let flags = [
            (merging.keep, "unlink", "off"),
            (merging.orphan_siblings, "siblings", "orphan"),
            (merging.verify, "verify", "on"),
        ];
        for (_, key, value) in flags.into_iter().filter(|(wanted, ..)| *wanted) {
            self.add(key, value.as_bytes())?;
        }
        for (key, value) in [("rate", merging.rate), ("threads", merging.threads.map(u64::from))] {
            if let Some(value) = value {
                self.add(key, value.to_string().as_bytes())?;
            }
        }
        Ok(())
    }
}

/// What the server says after "done". Ctrl-C hangs up, and the server cancels.
fn answer(stream: UnixStream, long: bool) -> Result<String, Failure> {
    let mut bar = long.then(|| Bar::new("merging"));
    // A path may have bytes that are not UTF-8.
    let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    let mut lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    let other = |message: &str, hint: &str| Failure::Other(message.to_string(), hint.to_string());
    while let Some(line) = lines.next() {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "progress" => {
                let mut numbers = rest.split(' ').map(|n| n.parse().unwrap_or(0));
                let (done, total) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                if !bar.as_mut().is_none_or(|bar| bar.show(done, total)) {
                    return Err(other("merge was cancelled", "run it again to go on"));
                }
            }
            "done" => return Ok(rest.to_string()),
            "failed" => {
                let message = rest.split_once(' ').map_or(rest, |(_, message)| message);
                let hint = lines.next().unwrap_or_default();
                return Err(other(message, hint.strip_prefix("hint ").unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(other("the server hung up", "its messages say why"))
}
