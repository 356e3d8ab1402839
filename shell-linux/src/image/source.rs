//! An image from elsewhere, and the files that it stands on.
//!
//! The metadata of an image may name other files and hosts. What it names is found here, and
//! opened only if the user has allowed that very file. The converter gets descriptors and a
//! description in which every place for a name is filled in, so that it looks up none itself.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use super::claim::hold;
use super::fault::Fault;
use super::format::{Content, Format};
use super::raw::Known;
use super::text::{line, shown};
use super::{qcow2, text, vmdk, vpc};
use crate::store::lock::Access;

/// Files that stand on each other at most.
const DEPTH_MAX: u32 = 64;

/// A file that is open for reading.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    device: bool,
}

/// An image and what it stands on.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) format: Format,
    pub(super) main: Opened,
    /// What is read where this image has nothing.
    pub(super) backing: Option<Box<Self>>,
    pub(super) stored: Stored,
}

/// Where guest data of an image is.
#[derive(Debug)]
pub(super) enum Stored {
    Inside,
    /// In one other file.
    Data(Opened),
    /// In pieces, which a descriptor of our own lists.
    Pieces {
        descriptor: File,
        extents: Vec<(vmdk::Extent, Opened)>,
    },
}

/// Files that images may stand on.
#[derive(Debug)]
pub(super) struct Allowed(Vec<(Metadata, PathBuf)>);

impl Allowed {
    /// # Errors
    /// When one of them cannot be looked at.
    pub(super) fn new(paths: &[PathBuf]) -> Result<Self, Fault> {
        let look = |path: &PathBuf| match path.metadata() {
            Ok(about) => Ok((about, path.clone())),
            Err(error) => Err(absent_or(error, path)),
        };
        paths.iter().map(look).collect::<Result<_, _>>().map(Self)
    }

    /// The file that is meant by `name` in an image at `path`.
    fn find(&self, path: &Path, name: &OsStr) -> Option<&Path> {
        let there = local(path, name)?.metadata().ok()?;
        let same = |(about, _): &&(Metadata, PathBuf)| {
            (about.dev(), about.ino()) == (there.dev(), there.ino())
        };
        self.0.iter().find(same).map(|(_, path)| path.as_path())
    }
}

/// Where a name in an image at `path` leads, if it is the name of a local file.
fn local(path: &Path, name: &OsStr) -> Option<PathBuf> {
    let bytes = name.as_bytes();
    let first = bytes.iter().find(|byte| matches!(byte, b':' | b'/'));
    let plain = first != Some(&b':') && !bytes.is_empty() && !bytes.contains(&0);
    plain.then(|| path.parent().unwrap_or(Path::new("")).join(name))
}

impl Opened {
    /// Opens a regular file, or a block device, for reading.
    //= spec/convert.md#CNV-12
    pub(super) fn new(path: &Path) -> Result<Self, Fault> {
        let name = shown(path);
        let mut how = File::options();
        how.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let mut file = how.open(path).map_err(|error| absent_or(error, path))?;
        let kind = file.metadata().with_context(|| format!("cannot look at {name}"))?.file_type();
        if let Some(what) = text::kind(kind) {
            return Err(Fault::Usage(format!(
                "{name} is {what}; an image is a file or a block device"
            )));
        }
        hold(&file, &name, Access::Copy)?;
        let end = file.seek(SeekFrom::End(0));
        let bytes = end.with_context(|| format!("cannot measure {name}"))?;
        Ok(Self { file, path: path.to_owned(), bytes, device: kind.is_block_device() })
    }

    /// A file that was made here.
    pub(super) fn made(file: &File, path: &Path) -> anyhow::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file: file.try_clone()?, path: path.to_owned(), bytes, device: false })
    }

    /// For the converter, by its descriptor.
    pub(super) fn node(&self) -> Value {
        let driver = if self.device { "host_device" } else { "file" };
        json!({ "driver": driver, "filename": by_number(&self.file), "read-only": true })
    }
}

/// What a child calls a descriptor that it has been handed.
pub(super) fn by_number(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn absent_or(error: std::io::Error, path: &Path) -> Fault {
    let name = shown(path);
    match error.kind() {
        ErrorKind::NotFound => Fault::NotFound(format!("there is no file {name}")),
        // What opening a socket is answered with.
        _ if error.raw_os_error() == Some(libc::ENXIO) => {
            Fault::Usage(format!("{name} is a socket; an image is a file or a block device"))
        }
        _ => Fault::Failed(anyhow::Error::from(error).context(format!("cannot read {name}"))),
    }
}

impl Source {
    /// Looks at an image and opens all that it stands on, if that is allowed.
    ///
    /// # Errors
    /// When it names what is not allowed: the message names it.
    //= spec/convert.md#CNV-5
    pub(super) fn new(main: Opened, format: Format, allowed: &Allowed) -> Result<Self, Fault> {
        Self::at_depth(main, format, allowed, 0)
    }

    fn at_depth(
        main: Opened,
        format: Format,
        allowed: &Allowed,
        depth: u32,
    ) -> Result<Self, Fault> {
        let name = shown(&main.path);
        if depth > DEPTH_MAX {
            return Err(Fault::Usage(format!("{name} stands on more than {DEPTH_MAX} others")));
        }
        let named = Named::by(&main, format)?;
        named.refuse_what_is_not(allowed, &main.path)?;
        let open = |name: &OsStr| match allowed.find(&main.path, name) {
            Some(path) => Opened::new(path),
            None => Err(Fault::Failed(anyhow!("{} has changed", shown(&main.path)))),
        };
        let backing = match &named.backing {
            None => None,
            Some(name) => {
                let file = open(name)?;
                let format = named.backing_format(&file)?;
                Some(Box::new(Self::at_depth(file, format, allowed, depth + 1)?))
            }
        };
        let stored = match (&named.data, &named.pieces) {
            (Some(name), _) => Stored::Data(open(name)?),
            (None, Some(descriptor)) => pieces(descriptor, open)?,
            (None, None) => Stored::Inside,
        };
        Ok(Self { format, main, backing, stored })
    }

    /// What the converter reads, all names in it being those of descriptors.
    pub(super) fn node(&self, with_backing: bool) -> Value {
        let file = match &self.stored {
            Stored::Pieces { descriptor, .. } => {
                json!({ "driver": "file", "filename": by_number(descriptor), "read-only": true })
            }
            _ => self.main.node(),
        };
        let mut node = json!({ "driver": self.format.to_string(), "file": file });
        if matches!(self.format, Format::Qcow2 | Format::Vmdk) {
            let backing = self.backing.as_ref().filter(|_| with_backing);
            node["backing"] = backing.map_or(Value::Null, |backing| backing.node(true));
        }
        if let Stored::Data(data) = &self.stored {
            node["data-file"] = data.node();
        }
        if self.format == Format::Vpc {
            // The size that it was made with, not one that is rounded to tracks.
            node["force_size_calc"] = json!("current_size");
        }
        node
    }

    /// All files of the chain.
    pub(super) fn files(&self) -> Vec<&File> {
        let mut files = vec![&self.main.file];
        match &self.stored {
            Stored::Inside => {}
            Stored::Data(data) => files.push(&data.file),
            Stored::Pieces { descriptor, extents } => {
                files.push(descriptor);
                files.extend(extents.iter().map(|(_, opened)| &opened.file));
            }
        }
        files.extend(self.backing.iter().flat_map(|backing| backing.files()));
        files
    }
}

fn pieces(
    descriptor: &vmdk::Descriptor,
    open: impl Fn(&OsStr) -> Result<Opened, Fault>,
) -> Result<Stored, Fault> {
    let open_one = |extent: &vmdk::Extent| Ok((extent.clone(), open(&extent.name)?));
    let extents = descriptor.extents.iter().map(open_one).collect::<Result<Vec<_>, Fault>>()?;
    let names: Vec<String> = extents.iter().map(|(_, opened)| by_number(&opened.file)).collect();
    let text = descriptor.rewritten(names.iter().map(String::as_str));
    let mut descriptor = tempfile::tempfile().context("cannot make a temporary file")?;
    descriptor.write_all(text.as_bytes()).context("cannot write a temporary file")?;
    Ok(Stored::Pieces { descriptor, extents })
}

/// What an image names.
#[derive(Debug, Default)]
struct Named {
    backing: Option<std::ffi::OsString>,
    backing_format: Option<String>,
    data: Option<std::ffi::OsString>,
    pieces: Option<vmdk::Descriptor>,
}

impl Named {
    fn by(main: &Opened, format: Format) -> Result<Self, Fault> {
        let name = shown(&main.path);
        let reading = || format!("cannot read {name}");
        let unsound = || Fault::Failed(anyhow!("{name} is no sound {format} image"));
        match format {
            Format::Qcow2 => {
                let names = qcow2::names(&main.file).with_context(reading)?.ok_or_else(unsound)?;
                if names.encrypted {
                    return Err(Fault::Usage(format!(
                        "{name} is encrypted; make an image of it that is not, where its key is"
                    )));
                }
                let qcow2::Names { backing, backing_format, data, .. } = names;
                Ok(Self { backing, backing_format, data, pieces: None })
            }
            Format::Vmdk => {
                let descriptor = vmdk::descriptor(&main.file, main.bytes).with_context(reading)?;
                let mut descriptor = descriptor.ok_or_else(unsound)?;
                let backing = descriptor.take_parent();
                let pieces = (!descriptor.extents.is_empty()).then_some(descriptor);
                let backing_format = backing.is_some().then(|| Format::Vmdk.to_string());
                Ok(Self { backing, backing_format, data: None, pieces })
            }
            Format::Vpc
                if vpc::is_differencing(&main.file, main.bytes).with_context(reading)? =>
            {
                Err(Fault::Usage(format!(
                    "{name} holds only what differs from another VHD; merge the two first"
                )))
            }
            // The converter refuses these where they stand on another.
            Format::Raw | Format::Vdi | Format::Vhdx | Format::Vpc => Ok(Self::default()),
        }
    }

    fn refuse_what_is_not(&self, allowed: &Allowed, path: &Path) -> Result<(), Fault> {
        let extents = self.pieces.iter().flat_map(|descriptor| &descriptor.extents);
        let all = (self.backing.iter().map(|name| ("backing file", name)))
            .chain(self.data.iter().map(|name| ("data file", name)))
            .chain(extents.map(|extent| ("extent", &extent.name)));
        let (mut files, mut others) = (Vec::new(), Vec::new());
        for (what, name) in all {
            let text = line(&name.to_string_lossy());
            match local(path, name) {
                None => others.push(format!("{what} {text:?}")),
                Some(_) if allowed.find(path, name).is_some() => {}
                Some(at) => files.push(format!("{what} {}", shown(&at))),
            }
        }
        let name = shown(path);
        if !others.is_empty() {
            return Err(Fault::Usage(format!(
                "{name} wants {} to be read, which is no file here; make an image of it that \
                 stands on nothing else, where it comes from",
                others.join(" and ")
            )));
        }
        if !files.is_empty() {
            return Err(Fault::Usage(format!(
                "{name} wants other files to be read: {}. If they belong to it, give --allow FILE \
                 for each of them",
                files.join(", ")
            )));
        }
        Ok(())
    }

    /// What the file is that the image stands on: nothing is guessed where it matters.
    fn backing_format(&self, file: &Opened) -> Result<Format, Fault> {
        let name = shown(&file.path);
        let unread = |what: &str| {
            Fault::Usage(format!("{name}, which the image stands on, is {what}: not read here"))
        };
        if let Some(said) = &self.backing_format {
            let known = <Format as clap::ValueEnum>::from_str(said, false);
            return known.map_err(|_| unread(&line(said)));
        }
        let content = Content::of(&file.file, file.bytes);
        match content.with_context(|| format!("cannot read {name}"))? {
            _ if Known::of(&file.file) == Known::Raw => Ok(Format::Raw),
            Content::Disk(format) => Ok(format),
            Content::Foreign(container) => Err(unread(container.what)),
        }
    }
}
