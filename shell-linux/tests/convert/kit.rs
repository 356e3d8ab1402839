//! A directory of images and what is to be imported into it.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sluice_linux::image::{About, Catalog, Fault, Format, ImportOptions, Name};
use tempfile::TempDir;

pub(crate) const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
pub(crate) const MIB: u64 = 1 << 20;

/// Formats that the converter reads and writes.
pub(crate) const FORMATS: [Format; 5] =
    [Format::Qcow2, Format::Vmdk, Format::Vdi, Format::Vhdx, Format::Vpc];

pub(crate) struct Room {
    pub(crate) dir: TempDir,
    pub(crate) images: Catalog,
}

pub(crate) fn room() -> Room {
    let dir = TempDir::new_in("/var/tmp").unwrap();
    let images = Catalog::new(dir.path().join("images"));
    Room { dir, images }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Bytes that are no zeroes and do not pack well.
pub(crate) fn noise(len: u32) -> Vec<u8> {
    (0..len).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2] | 1).collect()
}

/// The exit code and the sentence of a refusal.
pub(crate) fn refused<T>(result: Result<T, Fault>) -> (u8, String) {
    match result {
        Ok(_) => panic!("it was done"),
        Err(fault) => (fault.exit_code(), fault.to_string()),
    }
}

impl Room {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with some bytes that are no zeroes, scattered.
    pub(crate) fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        let noise = noise(200_000);
        file.write_all_at(&noise, bytes / 3).unwrap();
        file.write_all_at(&noise[..100], bytes - 100).unwrap();
        path
    }

    /// The same disk in a format, by the converter itself.
    pub(crate) fn converted(&self, disk: &Path, name: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut arguments: Vec<&OsStr> = ["convert", "-f", "raw"].map(OsStr::new).to_vec();
        arguments.extend(options.iter().map(OsStr::new));
        arguments.extend([disk.as_os_str(), path.as_os_str()]);
        qemu_img(&arguments);
        path
    }

    pub(crate) fn import(&self, from: &Path, to: &str) -> Result<About, Fault> {
        self.import_with(from, to, &ImportOptions::default())
    }

    pub(crate) fn import_with(
        &self,
        from: &Path,
        to: &str,
        options: &ImportOptions,
    ) -> Result<About, Fault> {
        self.images.import(from, &name(to), options, &|_, _| (), &|_| ())
    }

    pub(crate) fn export(&self, image: &str, to: &Path, format: Format) -> Result<u64, Fault> {
        self.images.export(&name(image), to, format, false, &|_, _| (), &|_| ())
    }

    /// All bytes of an image.
    pub(crate) fn bytes(&self, image: &str) -> Vec<u8> {
        std::fs::read(self.images.path(&name(image))).unwrap()
    }

    /// Nothing but whole images, of this number.
    pub(crate) fn has_images(&self, number: usize) {
        let files: Vec<_> = match std::fs::read_dir(self.images.dir()) {
            Ok(entries) => entries.map(|entry| entry.unwrap().file_name()).collect(),
            Err(_) => Vec::new(),
        };
        assert_eq!(files.len(), number, "{files:?}");
    }
}

/// Runs the converter by hand. These tests are about it, so it has to be there.
pub(crate) fn qemu_img(arguments: &[impl AsRef<OsStr>]) {
    run("qemu-img", arguments);
}

pub(crate) fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> Output {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    output
}
