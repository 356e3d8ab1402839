//! qemu-img, for formats that sluice does not read itself.
//!
//! It is told to read descriptors, by what `Source` has found, and is confined to them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Progress;
use super::fault::Fault;
use super::format::Format;
use super::sandbox;
use super::source::{Opened, Source, Stored, by_number};
use super::text::{line, shown};
use super::unfinished::Underway;
use super::{qcow2, vmdk, vpc};

/// Bytes of complaints that are kept.
const COMPLAINT_MAX: u64 = 1000;
/// Bytes of the longest line of a map.
const LINE_MAX: u64 = 1 << 12;
/// Bytes that are written to see whether there is room.
const PROBE: usize = 1 << 20;
/// What `check` answers: sound, with space lost, and of a format that has no check.
const SOUND: [i32; 3] = [0, 3, 63];

/// One run of qemu-img.
struct Run<'a> {
    /// What complaints are about.
    path: &'a Path,
    read: Vec<&'a File>,
    write: Option<&'a File>,
    arguments: Vec<String>,
}

/// How it ended.
struct Ended {
    status: ExitStatus,
    complaint: String,
}

impl Run<'_> {
    fn go<T>(&self, follow: impl FnOnce(ChildStdout) -> T) -> Result<(T, Ended), Fault> {
        let mut command = Command::new("qemu-img");
        command.args(&self.arguments).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sandbox::confine(&mut command, &self.read, self.write)?;
        let mut child = Underway::start(|| command.spawn()).map_err(missing)?;
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(anyhow!("qemu-img has no output").into());
        };
        // Read beside the output: whoever writes much of one would wait for ever otherwise.
        let complaints = std::thread::spawn(move || complaint(stderr));
        let result = follow(stdout);
        let status = child.0.wait().context("qemu-img")?;
        let mut complaint = complaints.join().unwrap_or_default();
        // What it calls the image is no name that anybody knows.
        for node in self.arguments.iter().filter(|argument| argument.starts_with("json:")) {
            complaint = complaint.replace(&format!("'{node}'"), &shown(self.path));
        }
        Ok((result, Ended { status, complaint }))
    }

    fn fault(&self, doing: &str, ended: &Ended) -> Fault {
        let (name, said) = (shown(self.path), &ended.complaint);
        let how = if said.is_empty() { ended.status.to_string() } else { said.clone() };
        Fault::Failed(anyhow!("qemu-img cannot {doing} {name}: {how}"))
    }
}

fn missing(error: std::io::Error) -> Fault {
    if error.kind() == ErrorKind::NotFound {
        return Fault::Failed(anyhow!(
            "this needs qemu-img, which is not installed here (package qemu-utils or qemu-img); \
             or convert the image to raw elsewhere"
        ));
    }
    Fault::Failed(anyhow::Error::from(error).context("cannot run qemu-img"))
}

/// The beginning of what is complained of, in one line.
fn complaint(mut from: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = (&mut from).take(COMPLAINT_MAX).read_to_end(&mut kept);
    // Who complains must not wait for a reader.
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    let text = String::from_utf8_lossy(&kept);
    let lines = text.lines().map(|text| line(text.trim_start_matches("qemu-img: ").trim()));
    lines.filter(|line| !line.is_empty()).take(2).collect::<Vec<_>>().join("; ")
}

/// A tree of nodes as an argument.
fn argument(node: &Value) -> String {
    format!("json:{node}")
}

/// One line of a map: what is where in the file.
#[derive(Debug, Deserialize)]
struct Range {
    start: u64,
    length: u64,
    data: bool,
    offset: Option<u64>,
}

impl Source {
    /// Looks whether everything is there that the image and what it stands on point to, and
    /// tells the size of the disk.
    ///
    /// # Errors
    /// When something is missing or wrong.
    //= spec/convert.md#CNV-7
    pub(super) fn examine(&self) -> Result<u64, Fault> {
        if let Some(backing) = &self.backing {
            backing.examine()?;
        }
        if self.format == Format::Raw {
            return Ok(self.main.bytes);
        }
        self.is_whole()?;
        self.check()?;
        self.map()
    }

    /// What the converter does not look at.
    fn is_whole(&self) -> Result<(), Fault> {
        let whole = |whole: std::io::Result<bool>, opened: &Opened| {
            let name = shown(&opened.path);
            match whole.with_context(|| format!("cannot read {name}"))? {
                true => Ok(()),
                false => Err(incomplete(opened)),
            }
        };
        let Opened { file, bytes, .. } = &self.main;
        match (&self.stored, self.format) {
            (Stored::Pieces { extents, .. }, _) => {
                extents.iter().try_for_each(|(extent, opened)| {
                    whole(extent.is_whole(&opened.file, opened.bytes), opened)
                })
            }
            (_, Format::Vmdk) => whole(vmdk::is_whole(file, *bytes), &self.main),
            (_, Format::Qcow2) => whole(qcow2::is_whole(file, *bytes), &self.main),
            (_, Format::Vpc) => whole(vpc::is_whole(file, *bytes), &self.main),
            (_, Format::Vhdx | Format::Vdi) => whole(Ok(bytes.is_multiple_of(512)), &self.main),
            _ => Ok(()),
        }
    }

    /// The converter's own check.
    fn check(&self) -> Result<(), Fault> {
        let run = self.run(&["check", "-q"]);
        let (_, ended) = run.go(drain)?;
        if ended.status.code().is_some_and(|code| SOUND.contains(&code)) {
            return Ok(());
        }
        let name = shown(&self.main.path);
        Err(Fault::Failed(anyhow!(
            "{name} is damaged or incomplete; copy it once more, or have a look at it with `qemu-img \
             check`: {}",
            ended.complaint
        )))
    }

    /// Looks where everything lies, and says how large the disk is.
    fn map(&self) -> Result<u64, Fault> {
        let run = self.run(&["map", "--output=json"]);
        let held = match &self.stored {
            Stored::Inside => Some(&self.main),
            Stored::Data(data) => Some(data),
            // Their places are in several files, which have been looked at.
            Stored::Pieces { .. } => None,
        };
        let (end, ended) = run.go(|output| {
            let mut end = 0;
            each_range(output, |range| {
                end = range.start.saturating_add(range.length);
                let behind = range.offset.map(|offset| offset.saturating_add(range.length));
                match (held, behind) {
                    (Some(held), Some(behind)) if range.data && behind > held.bytes => {
                        Err(incomplete(held))
                    }
                    _ => Ok(()),
                }
            })
            .map(|()| end)
        })?;
        if !ended.status.success() {
            end.as_ref().map_or(Ok(()), |_| Err(run.fault("read", &ended)))?;
        }
        end
    }

    fn run(&self, arguments: &[&str]) -> Run<'_> {
        let node = argument(&self.node(false));
        let arguments = arguments.iter().copied().map(str::to_owned).chain([node]).collect();
        Run { path: &self.main.path, read: self.files(), write: None, arguments }
    }

    /// Writes the disk into a file that reads as zeroes and is as long as it has to be.
    pub(super) fn convert(
        &self,
        into: &File,
        bytes: u64,
        progress: Progress<'_>,
    ) -> Result<(), Fault> {
        // The file is there, and it reads as zeroes.
        let options = ["convert", "-p", "-n", "--target-is-zero", "-O", "raw"];
        let arguments = options.map(str::to_owned).into_iter();
        let arguments = arguments.chain([argument(&self.node(true)), by_number(into)]).collect();
        let run = Run { path: &self.main.path, read: self.files(), write: Some(into), arguments };
        run.convert(bytes, progress)
    }
}

/// Makes an image of a format out of a raw file of so many bytes.
pub(super) fn make(
    from: &File,
    path: &Path,
    into: &File,
    format: Format,
    (bytes, progress): (u64, Progress<'_>),
) -> Result<(), Fault> {
    let file = json!({ "driver": "file", "filename": by_number(from), "read-only": true });
    let node = argument(&json!({ "driver": "raw", "file": file }));
    let mut arguments: Vec<String> = ["convert", "-p", "-O"]
        .map(str::to_owned)
        .into_iter()
        .chain([format.to_string()])
        .collect();
    if format == Format::Vpc {
        // To the byte, where it would be rounded up to whole tracks otherwise.
        arguments.extend(["-o", "force_size=on"].map(str::to_owned));
    }
    arguments.extend([node, by_number(into)]);
    Run { path, read: vec![from], write: Some(into), arguments }.convert(bytes, progress)
}

impl Run<'_> {
    fn convert(&self, bytes: u64, progress: Progress<'_>) -> Result<(), Fault> {
        let ((), ended) = self.go(|output| follow(output, bytes, progress))?;
        if ended.status.success() {
            return Ok(());
        }
        // It may have died of a full file system before it could say so.
        let more = |into: &File| into.write_all_at(&vec![1; PROBE], into.metadata()?.len());
        self.write
            .map_or(Ok(()), more)
            .with_context(|| format!("cannot write what {} becomes", shown(self.path)))?;
        Err(self.fault("convert", &ended))
    }
}

fn incomplete(opened: &Opened) -> Fault {
    Fault::Failed(anyhow!(
        "{} is incomplete: it has {} bytes and points to more; copy it once more",
        shown(&opened.path),
        opened.bytes
    ))
}

/// Reads output that nobody wants.
fn drain(mut output: ChildStdout) {
    let _ = std::io::copy(&mut output, &mut std::io::sink());
}

/// Reads a map, one object a line in a list, until `look` has enough.
//= spec/convert.md#CNV-10
fn each_range(
    output: impl Read,
    mut look: impl FnMut(&Range) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let (mut output, mut text) = (BufReader::new(output), Vec::new());
    loop {
        text.clear();
        let len = (&mut output).take(LINE_MAX).read_until(b'\n', &mut text);
        if len.context("qemu-img map")? == 0 {
            return Ok(());
        }
        let object = text.trim_ascii();
        let object = object.strip_prefix(b"[").unwrap_or(object).trim_ascii();
        let object = object.strip_suffix(b"]").unwrap_or(object);
        let object = object.strip_suffix(b",").unwrap_or(object).trim_ascii();
        if !object.is_empty() {
            look(&serde_json::from_slice(object).context("qemu-img map")?)?;
        }
    }
}

/// Reads what `-p` writes: lines such as `    (12.50/100%)`, ended by carriage returns.
fn follow(mut output: impl Read, bytes: u64, progress: Progress<'_>) {
    let (mut buffer, mut number) = ([0; 256], String::new());
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        for &byte in &buffer[..len] {
            match byte {
                b'0'..=b'9' => number.push(char::from(byte)),
                // Hundredths of a per cent: the point is left out.
                b'.' => {}
                b'/' => {
                    if let Ok(hundredths) = number.parse::<u64>() {
                        let done = u128::from(bytes) * u128::from(hundredths.min(10_000)) / 10_000;
                        progress(u64::try_from(done).unwrap_or(bytes), bytes);
                    }
                    number.clear();
                }
                _ => number.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_is_printed() {
        let seen = std::cell::RefCell::new(Vec::new());
        let text = "    (0.00/100%)\r    (12.50/100%)\r    (100.00/100%)\r\n";
        follow(text.as_bytes(), 1000, &|done, all| seen.borrow_mut().push((done, all)));
        assert_eq!(*seen.borrow(), [(0, 1000), (125, 1000), (1000, 1000)]);
    }

    fn ranges(text: &str) -> Result<Vec<(u64, u64)>, Fault> {
        let mut all = Vec::new();
        let done = each_range(text.as_bytes(), |range| {
            all.push((range.start, range.length));
            Ok(())
        });
        done.map(|()| all)
    }

    //= spec/convert.md#CNV-10
    #[test]
    fn maps_are_read_as_hostile() {
        let text = "[{ \"start\": 0, \"length\": 8, \"data\": true, \"offset\": 5, \"new\": [1]},\n\
                    { \"start\": 8, \"length\": 2, \"data\": false}]\n";
        assert_eq!(ranges(text).unwrap(), [(0, 8), (8, 2)]);
        assert_eq!(ranges("[]\n").unwrap(), []);
        let endless = "[".to_owned() + &"{\"start\":".repeat(100_000);
        let deep = "[".repeat(4000);
        for hostile in [
            "[{ \"start\": -1, \"length\": 8, \"data\": true}]",
            "[{ \"start\": 18446744073709551616, \"length\": 8, \"data\": true}]",
            "[{ \"start\": 1.5, \"length\": 8, \"data\": true}]",
            "[{ \"start\": 0, \"data\": true}]",
            "{ \"start\": 0",
            "nonsense",
            &endless,
            &deep,
        ] {
            assert!(ranges(hostile).is_err(), "{:.40}", hostile);
        }
    }

    //= spec/convert.md#CNV-10
    #[test]
    fn complaints_are_short_and_one_line() {
        let said = complaint(&b"qemu-img: one\x1b[2J\n\n two\nthree"[..]);
        assert_eq!(said, "one\\u{1b}[2J; two");
        let endless = complaint(std::io::repeat(b'x').take(1 << 20));
        assert_eq!(endless.len() as u64, COMPLAINT_MAX);
    }
}
