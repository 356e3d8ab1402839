//! A file system that answers what holds a process up when it likes: reads of a page, and the
//! close of a file.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::zoo::HELD;

const FORGET: u32 = 2;
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const BYTES: u64 = 1 << 20;

/// One file, `mem`, in a directory.
pub(crate) struct Fuse {
    directory: tempfile::TempDir,
}

impl Fuse {
    /// `None` where that is not allowed.
    pub(crate) fn new() -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let data = std::ffi::CString::new(data).ok()?;
        mount("fuse", directory.path(), "fuse", MountFlags::empty(), data.as_c_str()).ok()?;
        let device = Arc::new(device);
        std::thread::spawn(move || serve(&device));
        Some(Self { directory })
    }

    pub(crate) fn open(&self) -> OwnedFd {
        let path = self.directory.path().join("mem");
        openat(CWD, path, OFlags::RDWR, Mode::empty()).expect("it is there")
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = unmount(self.directory.path(), UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

fn serve(device: &Arc<File>) {
    let mut buffer = vec![0; 1 << 18];
    // The mount is gone with the storm.
    while let Ok(len) = (&mut &**device).read(&mut buffer) {
        let request = &buffer[..len];
        let opcode = u32::from_ne_bytes(request[4..8].try_into().expect("a header"));
        let unique = u64::from_ne_bytes(request[8..16].try_into().expect("a header"));
        let node = u64::from_ne_bytes(request[16..24].try_into().expect("a header"));
        match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => {}
            READ | FLUSH => {
                let device = Arc::clone(device);
                let body = if opcode == READ { vec![0; 4096] } else { Vec::new() };
                std::thread::spawn(move || {
                    std::thread::sleep(HELD);
                    answer(&device, unique, 0, &body);
                });
            }
            INIT => answer(
                device,
                unique,
                0,
                &words(&[
                    7,
                    31,
                    1 << 16,
                    0,
                    12 << 16 | 16,
                    1 << 17,
                    1,
                    256,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]),
            ),
            LOOKUP => answer(
                device,
                unique,
                0,
                &[longs(&[2, 0, 1 << 20, 1 << 20, 0]), attributes(2)].concat(),
            ),
            GETATTR => {
                answer(device, unique, 0, &[longs(&[1 << 20, 0]), attributes(node)].concat())
            }
            OPEN => answer(device, unique, 0, &words(&[1, 0, 0, 0])),
            RELEASE => answer(device, unique, 0, &[]),
            _ => answer(device, unique, libc::ENOSYS, &[]),
        }
    }
}

fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == 1 { 0o040_755 } else { 0o100_666 };
    let times = longs(&[node, BYTES, BYTES / 512, 0, 0, 0]);
    [times, words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn answer(mut device: &File, unique: u64, errno: i32, body: &[u8]) {
    let len = u32::try_from(16 + body.len()).expect("short");
    let message = [&words(&[len, (-errno).cast_unsigned()])[..], &longs(&[unique]), body].concat();
    // Fails for a request that was given up, which is all right.
    let _ = device.write_all(&message);
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}
