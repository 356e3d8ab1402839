//! Block devices as images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_core::op::OpKind;
use sluice_linux::image::{Catalog, Fault, Format, Name};
use sluice_linux::store::{OpenOptions, Store};

use super::kit::{Guest, disk, image, op, run, take};
use super::room::skip::skip;

const MIB: u64 = 1 << 20;

/// A loop device, until dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` for users who may not have one.
    fn new(file: &Path, block: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("only root may have a loop device");
            return None;
        }
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block.to_string()])
            .arg(file)
            .output()
            .expect("losetup is installed");
        assert!(made.status.success(), "{made:?}");
        Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

//= spec/store.md#STO-28
#[test]
fn a_block_device_is_served_with_its_own_blocks() {
    for block in [512, 4096] {
        let dir = disk();
        let file = image(dir.path(), 8 * MIB);
        let Some(device) = Loop::new(&file, block) else { return };
        let mut store = take(&device.0, OpenOptions::default());
        let config = store.config();
        assert_eq!((config.capacity_sectors, config.block_bytes), (8 * MIB / 512, block));
        assert!(config.write_zeroes && !store.describe().contains("inline"), "{store}");
        let guest = Guest::new(MIB);
        guest.put(0, &[0x5a; 8192]);
        let (write, read) = (op(1, OpKind::Write, 4096, 8192), op(2, OpKind::Read, 4096, 8192));
        let (from, into) = ([guest.piece(0, 8192)], [guest.piece(65_536, 8192)]);
        assert_eq!(run(&mut store, &write, &from, &guest.mem), 8192);
        assert_eq!(run(&mut store, &op(3, OpKind::Sync, 0, 0), &[], &guest.mem), 0);
        let zero = op(4, OpKind::WriteZeroes { unmap: false }, 4096, 4096);
        assert_eq!(run(&mut store, &zero, &[], &guest.mem), 0);
        assert_eq!(run(&mut store, &read, &into, &guest.mem), 8192);
        assert_eq!(guest.get(65_536, 8192), [[0; 4096], [0x5a; 4096]].concat());
        if config.discard {
            let discard = op(5, OpKind::Discard, 4096, 8192);
            assert_eq!(run(&mut store, &discard, &[], &guest.mem), 0);
            assert_eq!(run(&mut store, &read, &into, &guest.mem), 8192);
            assert_eq!(guest.get(65_536, 8192), [0; 8192]);
        }
        let second = Store::open(&device.0, OpenOptions::default());
        let said = format!("{:#}", second.expect_err("it is not alone"));
        assert!(said.contains("served already"), "{said}");
        let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
        assert!(Store::open(&device.0, reader).is_ok());
    }
}

/// A file system that is mounted, until dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(device: &Path) -> Self {
        let dir = disk();
        let ran = |command: &mut Command| {
            let output = command.output().expect("e2fsprogs and mount are installed");
            assert!(output.status.success(), "{output:?}");
        };
        ran(Command::new("mkfs.ext4").arg("-q").arg(device));
        ran(Command::new("mount").args(["-o", "ro"]).arg(device).arg(dir.path()));
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

//= spec/store.md#STO-28
#[test]
fn a_mounted_device_is_not_served() {
    let dir = disk();
    let file = image(dir.path(), 8 * MIB);
    let Some(device) = Loop::new(&file, 512) else { return };
    let socket = dir.path().join("s");
    let mut serve = Command::new(env!("CARGO_BIN_EXE_sluice"));
    serve.args(["serve-one", "--socket-path"]).arg(&socket).arg("--blk-file").arg(&device.0);
    let mounted = Mounted::new(&device.0);
    let output = serve.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("is mounted"), "{said}");
    assert!(!socket.exists());
    drop(mounted);
    assert!(Store::open(&device.0, OpenOptions::default()).is_ok());
}

/// Images with one of 4 MiB in it: nothing, something, nothing.
fn images(dir: &Path) -> (Catalog, Name) {
    let images = Catalog::new(dir.join("images"));
    let name: Name = "i".parse().unwrap();
    let about = images.create(&name, 4 * MIB, false).unwrap();
    let file = File::options().write(true).open(about.path).unwrap();
    file.write_all_at(&[0x11; 100_000], 1_000_000).unwrap();
    (images, name)
}

fn export(images: &(Catalog, Name), device: &Loop, force: bool) -> Result<Vec<String>, Fault> {
    let notes = std::cell::RefCell::new(Vec::new());
    let note = |text| notes.borrow_mut().push(text);
    let (images, name) = images;
    images.export(name, &device.0, Format::Raw, force, &|_, _| (), &note)?;
    Ok(notes.into_inner())
}

fn front(device: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    File::open(device).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

//= spec/convert.md#CNV-13
#[test]
fn an_image_is_exported_onto_a_device_that_nobody_uses() {
    for (block, room) in [(512, 4 * MIB), (4096, 8 * MIB)] {
        let dir = disk();
        let images = images(dir.path());
        let file = image(dir.path(), room);
        std::fs::write(&file, vec![0xee; usize::try_from(room).unwrap()]).unwrap();
        let Some(device) = Loop::new(&file, block) else { return };
        let notes = export(&images, &device, true).unwrap();
        let wanted = std::fs::read(images.0.path(&images.1)).unwrap();
        assert!(front(&device.0) == wanted, "holes are zeroes there");
        let larger = notes.iter().any(|note| note.contains("4194304 bytes more"));
        assert_eq!(larger, room > 4 * MIB, "{notes:?}");
        // As serving it shows it.
        assert_eq!(take(&device.0, OpenOptions::default()).config().capacity_sectors, room / 512);
    }
}

//= spec/convert.md#CNV-13
#[test]
fn a_device_that_is_used_or_too_small_is_not_exported_onto() {
    let dir = disk();
    let images = images(dir.path());
    let file = image(dir.path(), 8 * MIB);
    let Some(device) = Loop::new(&file, 512) else { return };
    let refused = |force, code, word: &str| {
        let before = front(&device.0);
        let fault = export(&images, &device, force).expect_err(word);
        assert!(fault.exit_code() == code && fault.to_string().contains(word), "{fault}");
        assert!(front(&device.0) == before, "{word}");
    };
    refused(false, 5, "--force");
    let mounted = Mounted::new(&device.0);
    refused(true, 5, "is mounted");
    drop(mounted);
    let serving = Store::open(&device.0, OpenOptions::default()).unwrap();
    refused(true, 5, "served already");
    drop(serving);
    let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
    let reading = take(&device.0, reader);
    refused(true, 5, "in use by process");
    drop(reading);
    let packed = images.0.export(&images.1, &device.0, Format::Qcow2, true, &|_, _| (), &|_| ());
    assert_eq!(packed.expect_err("no format").exit_code(), 2);
    export(&images, &device, true).unwrap();
    let small_dir = disk();
    let small = image(small_dir.path(), 2 * MIB);
    let Some(small) = Loop::new(&small, 512) else { return };
    let fault = export(&images, &small, true).expect_err("too small");
    assert!(fault.exit_code() == 2 && fault.to_string().contains("too few"), "{fault}");
}
