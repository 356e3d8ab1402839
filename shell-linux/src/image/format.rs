//! What is in a file, by what it begins and ends with.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::foreign::{self, Container};

/// How a file holds the bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's, also called VHD.
    Vpc,
}

/// What a file seems to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A disk in a format that is read here, or nothing that is known: raw.
    Disk(Format),
    /// Something that has to be unpacked or converted first.
    Foreign(&'static Container),
}

/// Bytes at the start that tell.
const HEAD: usize = 512;
/// Bytes of a footer.
const FOOT: usize = 512;

impl Content {
    /// What the first and last bytes of a file tell of. What is too short for any header is raw.
    ///
    /// # Errors
    /// When it cannot be read.
    //= spec/convert.md#CNV-2
    pub fn of(file: &File, bytes: u64) -> std::io::Result<Self> {
        let (mut head, mut foot) = ([0; HEAD], [0; FOOT]);
        read_to_end(file, &mut head, 0)?;
        read_to_end(file, &mut foot, bytes.saturating_sub(FOOT as u64))?;
        Ok(Self::told_by(&head, &foot))
    }

    /// The command to run first on FILE to have a disk that can be served.
    #[must_use]
    pub fn first(&self) -> String {
        match self {
            Self::Foreign(container) => container.first.to_owned(),
            Self::Disk(format) => format!("sluice image import --format {format} FILE NAME"),
        }
    }

    fn told_by(head: &[u8; HEAD], foot: &[u8]) -> Self {
        let begins = |magic: &[u8]| head.starts_with(magic);
        Self::Disk(match () {
            // The first version of the format is another one.
            () if begins(b"QFI\xfb\0\0\0\x01") => return Self::Foreign(&foreign::QCOW1),
            () if begins(b"QFI\xfb") => Format::Qcow2,
            () if begins(b"KDMV") => Format::Vmdk,
            () if begins(b"# Disk DescriptorFile") => Format::Vmdk,
            () if begins(b"vhdxfile") => Format::Vhdx,
            () if begins(b"conectix") => Format::Vpc,
            () if head[64..68] == [0x7f, 0x10, 0xda, 0xbe] => Format::Vdi,
            () => match foreign::told_by(head, foot) {
                Some(container) => return Self::Foreign(container),
                None => Format::Raw,
            },
        })
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign(container) => f.write_str(container.what),
            Self::Disk(format) => write!(f, "a {format} image"),
        }
    }
}

/// Fills a buffer from a place in a file; what is behind the end stays as it is.
pub(super) fn read_to_end(file: &File, mut into: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, at) {
            Ok(0) => break,
            Ok(len) => {
                into = &mut into[len..];
                at += len as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl fmt::Display for Format {
    /// As qemu-img calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
        })
    }
}
