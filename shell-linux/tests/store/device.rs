//! Block devices as images.

use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_core::op::OpKind;
use sluice_linux::store::{OpenOptions, Store};

use super::kit::{Guest, disk, image, op, run, take};

const MIB: u64 = 1 << 20;

/// A loop device, until dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None` for users who may not have one.
    fn new(file: &Path, block: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may have a loop device");
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
