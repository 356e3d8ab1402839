//! Images from and to files elsewhere.

use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, anyhow};

use super::catalog::{About, Catalog};
use super::claim::claim_path;
use super::copy::copy;
use super::fault::Fault;
use super::name::Name;
use super::new::NewFile;
use super::{Progress, qemu_img};
use crate::store::lock::Access;

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
    /// Virtual PC's.
    Vpc,
}

impl Format {
    /// The format that the first bytes of a file tell of.
    #[must_use]
    pub fn of(file: &File) -> Self {
        let mut head = [0; 68];
        // What is too short for a header is raw.
        if file.read_exact_at(&mut head, 0).is_err() {
            return Self::Raw;
        }
        match &head {
            [b'Q', b'F', b'I', 0xfb, ..] => Self::Qcow2,
            [b'K', b'D', b'M', b'V', ..] => Self::Vmdk,
            _ if head.starts_with(b"# Disk DescriptorFile") => Self::Vmdk,
            _ if head.starts_with(b"vhdxfile") => Self::Vhdx,
            _ if head.starts_with(b"conectix") => Self::Vpc,
            _ if head.ends_with(&[0x7f, 0x10, 0xda, 0xbe]) => Self::Vdi,
            _ => Self::Raw,
        }
    }
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

impl Catalog {
    /// Makes an image out of a file or block device. `note` is told what else is worth knowing.
    ///
    /// # Errors
    /// When the file cannot be read, the name is taken, or a format needs qemu-img and there is
    /// none.
    pub fn import(
        &self,
        from: &Path,
        name: &Name,
        format: Option<Format>,
        progress: Progress<'_>,
        note: &dyn Fn(String),
    ) -> Result<About, Fault> {
        let shown = from.display();
        let mut file = claim_path(from, Access::Copy)?;
        let bytes =
            file.seek(SeekFrom::End(0)).with_context(|| format!("cannot measure {shown}"))?;
        let format = format.unwrap_or_else(|| Format::of(&file));
        let target = self.vacant(name)?;
        let new = NewFile::beside(&target)?;
        let bytes = if format == Format::Raw {
            copy(&file, &new.file, bytes, progress)
                .with_context(|| format!("cannot copy {shown}"))?;
            bytes
        } else {
            // Said aloud: the bytes of a raw disk may be made to look like another format.
            note(format!("{shown} is read as {format}; --format raw takes it as it is"));
            let info = qemu_img::info(from, &format.to_string())?;
            if let Some(backing) = &info.backing {
                note(format!("{shown} stands on {backing}, which is read too"));
            }
            new.file.set_len(info.bytes).context("cannot make the image")?;
            let into = (new.path(), "raw");
            qemu_img::convert((from, &format.to_string()), into, info.bytes, progress)?;
            info.bytes
        };
        if bytes == 0 {
            return Err(Fault::Failed(anyhow!("{shown} is empty")));
        }
        if !bytes.is_multiple_of(512) {
            note(format!("{shown} has {bytes} bytes; zeroes make it a multiple of 512"));
            new.file.set_len(bytes.next_multiple_of(512)).context("cannot make the image")?;
        }
        self.publish(new, name, false)
    }

    /// Makes a file out of an image: its bytes.
    ///
    /// # Errors
    /// When the image is in use or not there, when the file is there and `replace` is not given,
    /// or when it cannot be written.
    pub fn export(
        &self,
        name: &Name,
        into: &Path,
        format: Format,
        replace: bool,
        progress: Progress<'_>,
        note: &dyn Fn(String),
    ) -> Result<u64, Fault> {
        let shown = into.display();
        let (file, bytes, poisoned) = self.source(name)?;
        if poisoned {
            note(format!("image {name} is poisoned: acknowledged writes may be missing from it"));
        }
        match into.symlink_metadata() {
            Ok(_) if !replace => {
                return Err(Fault::Taken(format!("{shown} exists; give --force to replace it")));
            }
            Ok(about) if !about.is_file() => {
                return Err(Fault::Usage(format!("{shown} is no regular file")));
            }
            _ => {}
        }
        let into = std::path::absolute(into).with_context(|| shown.to_string())?;
        let new = if replace { NewFile::instead_of(&into)? } else { NewFile::beside(&into)? };
        if format == Format::Raw {
            copy(&file, &new.file, bytes, progress)
                .with_context(|| format!("cannot write {shown}"))?;
        } else {
            let from = (self.path(name), "raw");
            let to = (new.path(), format.to_string());
            qemu_img::convert((&from.0, from.1), (to.0, &to.1), bytes, progress)?;
        }
        new.publish(&into, replace)?;
        Ok(bytes)
    }
}
