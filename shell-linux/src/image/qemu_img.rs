//! qemu-img, for formats that sluice does not read itself.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use serde::Deserialize;

use super::Progress;
use super::fault::Fault;

/// What qemu-img says of an image.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// Bytes that a guest sees.
    #[serde(rename = "virtual-size")]
    pub(super) bytes: u64,
    /// The file it stands on, if any.
    #[serde(rename = "full-backing-filename")]
    pub(super) backing: Option<String>,
}

/// What is in an image of a format.
pub(super) fn info(path: &Path, format: &str) -> Result<Info, Fault> {
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json", "-f", format]).arg(absolute(path)?);
    let output = command.output().map_err(|error| missing(error, format))?;
    if !output.status.success() {
        return Err(complaint(&output.stderr, path));
    }
    let info = serde_json::from_slice(&output.stdout).context("qemu-img info")?;
    Ok(info)
}

/// Converts `from` into the file `into`, which is there and as long as it has to be.
pub(super) fn convert(
    (from, from_format): (&Path, &str),
    (into, into_format): (&Path, &str),
    bytes: u64,
    progress: Progress<'_>,
) -> Result<(), Fault> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-f", from_format, "-O", into_format]);
    if into_format == "raw" {
        // The file is there, and it reads as zeroes.
        command.args(["-n", "--target-is-zero"]);
    }
    command.arg(absolute(from)?).arg(absolute(into)?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| missing(error, from_format))?;
    if let Some(output) = child.stdout.take() {
        follow(output, bytes, progress);
    }
    let output = child.wait_with_output().context("qemu-img convert")?;
    if output.status.success() { Ok(()) } else { Err(complaint(&output.stderr, from)) }
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

/// A path that is neither an option nor a protocol to qemu-img, whatever it looks like.
fn absolute(path: &Path) -> Result<std::path::PathBuf, Fault> {
    Ok(std::path::absolute(path).with_context(|| path.display().to_string())?)
}

fn missing(error: std::io::Error, format: &str) -> Fault {
    if error.kind() == ErrorKind::NotFound {
        return Fault::Failed(anyhow!(
            "{format} needs qemu-img, which is not installed here (package qemu-utils or \
             qemu-img); or convert the image to raw elsewhere"
        ));
    }
    Fault::Failed(anyhow::Error::from(error).context("cannot run qemu-img"))
}

fn complaint(said: &[u8], path: &Path) -> Fault {
    let said = String::from_utf8_lossy(said);
    let said = said.trim().trim_start_matches("qemu-img: ");
    Fault::Failed(anyhow!("qemu-img cannot read {}: {said}", path.display()))
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
}
