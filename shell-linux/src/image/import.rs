//! Images from and to files elsewhere.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::catalog::{About, Catalog};
use super::converter;
use super::copy::{copy, copy_onto};
use super::device;
use super::fault::Fault;
use super::format::{Content, Format};
use super::name::Name;
use super::new::NewFile;
use super::raw::{self, Known};
use super::source::{Allowed, Opened, Source};
use super::text::{self, shown};
use super::{Note, Progress};
use crate::store::probe;

/// Bytes of a sector: every disk has a multiple of it.
const SECTOR: u64 = 512;

/// How to take a file.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// What is in it; found out by its bytes otherwise.
    pub format: Option<Format>,
    /// Files that it may stand on.
    pub allow: Vec<PathBuf>,
    /// Whether zeroes may make it a multiple of 512 bytes.
    pub pad: bool,
}

impl Catalog {
    /// Makes an image out of a file or block device. `note` is told what else is worth knowing.
    ///
    /// # Errors
    /// When the file cannot be read or is not whole, when it has to be unpacked first, when it
    /// stands on files that are not allowed, when the name is taken, or when a format needs
    /// qemu-img and there is none.
    pub fn import(
        &self,
        from: &Path,
        name: &Name,
        options: &ImportOptions,
        progress: Progress<'_>,
        note: Note<'_>,
    ) -> Result<About, Fault> {
        let target = self.vacant(name)?;
        let allowed = Allowed::new(&options.allow)?;
        let opened = Opened::new(from)?;
        let format = options.format.map_or_else(|| found(&opened, note), Ok)?;
        let source = Source::new(opened, format, &allowed)?;
        let bytes = source.examine()?;
        let padded = padded(&source.main, bytes, options.pad, note)?;
        let new = NewFile::beside(&target)?;
        if format == Format::Raw {
            copy(&source.main.file, &new.file, bytes, progress)
                .with_context(|| format!("cannot copy {}", shown(from)))?;
        } else {
            new.file.set_len(bytes).context("cannot make the image")?;
            source.convert(&new.file, bytes, progress)?;
        }
        new.file.set_len(padded).context("cannot make the image")?;
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
        note: Note<'_>,
    ) -> Result<u64, Fault> {
        let (file, bytes, poisoned) = self.source(name)?;
        if poisoned {
            note(format!("image {name} is poisoned: acknowledged writes may be missing from it"));
        }
        let shown = shown(into);
        if device::is_device(into) {
            let target = device::open(into, format, bytes, replace)?;
            return onto(&target, &shown, (&file, bytes), progress, note);
        }
        vacant(into, &shown, replace)?;
        let into = std::path::absolute(into).with_context(|| shown.clone())?;
        let new = if replace { NewFile::instead_of(&into)? } else { NewFile::beside(&into)? };
        if format == Format::Raw {
            copy(&file, &new.file, bytes, progress)
                .with_context(|| format!("cannot write {shown}"))?;
            stays_raw(&new.file, &shown, bytes, note)?;
        } else {
            converter::make(&file, &into, &new.file, format, (bytes, progress))?;
            same_size(Opened::made(&new.file, &into)?, format, bytes)?;
        }
        new.publish(&into, replace)?;
        Ok(bytes)
    }
}

/// Writes an image onto a device, zeroes included.
//= spec/convert.md#CNV-13
fn onto(
    device: &File,
    shown: &str,
    (image, bytes): (&File, u64),
    progress: Progress<'_>,
    note: Note<'_>,
) -> Result<u64, Fault> {
    let writing = || format!("cannot write {shown}, and what was on it is lost");
    device::zero(device, bytes).with_context(writing)?;
    copy_onto(image, device, bytes, progress).with_context(writing)?;
    device.sync_all().with_context(writing)?;
    let room = probe::size_of(device).with_context(|| format!("cannot measure {shown}"))?;
    if room > bytes {
        note(format!(
            "{shown} has {} bytes more than the image; they are left as they were, and a disk \
             that it is served as ends behind them",
            room - bytes
        ));
    }
    stays_raw(device, shown, bytes, note)?;
    Ok(bytes)
}

/// Whether a file may be made here.
//= spec/convert.md#CNV-11
fn vacant(into: &Path, shown: &str, replace: bool) -> Result<(), Fault> {
    let Ok(about) = into.symlink_metadata() else { return Ok(()) };
    match text::kind(about.file_type()) {
        Some(what) => {
            Err(Fault::Usage(format!("{shown} is {what}; give the name of a file to be made")))
        }
        None if !about.is_file() => Err(Fault::Usage(format!("{shown} is no regular file"))),
        None if !replace => {
            Err(Fault::Taken(format!("{shown} exists; give --force to replace it")))
        }
        None => Ok(()),
    }
}

/// The format that a file has by its bytes, if there is no doubt.
//= spec/convert.md#CNV-2
fn found(file: &Opened, note: Note<'_>) -> Result<Format, Fault> {
    let name = shown(&file.path);
    let content = Content::of(&file.file, file.bytes);
    let content = content.with_context(|| format!("cannot read {name}"))?;
    match content {
        Content::Disk(Format::Raw) => Ok(Format::Raw),
        _ if Known::of(&file.file) == Known::Raw => {
            note(format!("{name} looks like {content}, but is known to be raw and taken as that"));
            Ok(Format::Raw)
        }
        Content::Foreign(_) => Err(Fault::Usage(format!(
            "{name} is {content}. First run `{}`, then import what that makes; --format raw takes \
             it as it is",
            content.first()
        ))),
        Content::Disk(format) if raw::is_named_raw(&file.path) => Err(Fault::Usage(format!(
            "{name} is named like a raw disk and looks like {content}, as a guest can make its \
             disk look: give --format raw if it was a guest's disk, or --format {format}"
        ))),
        Content::Disk(format) => {
            // Said aloud: the bytes of a raw disk may be made to look like another format.
            note(format!("{name} is read as {format}; --format raw takes it as it is"));
            Ok(format)
        }
    }
}

/// The size that an image gets.
//= spec/convert.md#CNV-9
fn padded(file: &Opened, bytes: u64, pad: bool, note: Note<'_>) -> Result<u64, Fault> {
    let name = shown(&file.path);
    if bytes == 0 {
        return Err(Fault::Failed(anyhow!("{name} is empty")));
    }
    let padded = bytes.checked_next_multiple_of(SECTOR).filter(|&size| i64::try_from(size).is_ok());
    let padded =
        padded.ok_or_else(|| Fault::Failed(anyhow!("{name} is too large: {bytes} bytes")))?;
    let more = padded - bytes;
    if more > 0 && !pad {
        return Err(Fault::Usage(format!(
            "{name} has {bytes} bytes, and a disk has a multiple of 512: it may be incomplete; if \
             it is not, --pad adds {more} zeroes"
        )));
    }
    if more > 0 {
        note(format!("{name} has {bytes} bytes; {more} zeroes make it a multiple of 512"));
    }
    Ok(padded)
}

/// Keeps a raw disk from being taken for what its guest made it look like.
//= spec/convert.md#CNV-4
fn stays_raw(new: &File, shown: &str, bytes: u64, note: Note<'_>) -> Result<(), Fault> {
    let content = Content::of(new, bytes).with_context(|| format!("cannot read {shown}"))?;
    let marked = raw::mark(new).is_ok();
    if content != Content::Disk(Format::Raw) {
        let by_name = if marked { "" } else { ", with `sluice image import --format raw` too" };
        note(format!(
            "the disk looks like {content}: say that {shown} is raw wherever it is opened{by_name}"
        ));
    }
    Ok(())
}

/// What was made has to show the same disk.
//= spec/convert.md#CNV-9
fn same_size(new: Opened, format: Format, bytes: u64) -> Result<(), Fault> {
    let made = Source::new(new, format, &Allowed::new(&[])?)?.examine()?;
    if made == bytes {
        return Ok(());
    }
    Err(Fault::Usage(format!(
        "a disk of {bytes} bytes would become one of {made} in {format}: resize the image to that \
         first, or choose another format"
    )))
}
