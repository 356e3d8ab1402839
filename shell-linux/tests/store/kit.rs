//! A guest's memory, files to be images, and a way to run operations to their end.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sluice_core::image::ImageId;
use sluice_core::memory::{RegionId, Segment, SharedMemory};
use sluice_core::op::{Op, OpId, OpKind, Piece, Target};
use sluice_linux::mapping::{Mapping, Mappings};
use sluice_linux::store::{Captured, OpenOptions, Store};
use tempfile::TempDir;

/// One region of memory, as a front end shares it.
pub(crate) struct Guest {
    pub(crate) mem: Mappings,
    pub(crate) region: RegionId,
    pub(crate) memfd: OwnedFd,
}

impl Guest {
    pub(crate) fn new(bytes: u64) -> Self {
        let memfd = memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memfd, bytes).unwrap();
        let mut mem = Mappings::default();
        let mapping = Mapping::new(memfd.try_clone().unwrap(), 0, bytes).unwrap();
        let region = mem.insert(mapping);
        Self { mem, region, memfd }
    }

    pub(crate) fn put(&self, offset: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(offset..) {
            self.mem.write(self.region, at, byte).unwrap();
        }
    }

    pub(crate) fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        (offset..).take(len).map(|at| self.mem.read(self.region, at).unwrap()).collect()
    }

    pub(crate) fn piece(&self, offset: u64, len: u32) -> Piece {
        Piece::Guest(Segment::new(self.region, offset, len))
    }
}

pub(crate) fn op(index: u32, kind: OpKind, offset: u64, len: u64) -> Op {
    Op {
        id: OpId { index, generation: 7 },
        target: Target::Store(ImageId(0)),
        kind,
        inode: 0,
        offset,
        len,
        version: 0,
        meta_revision: 0,
    }
}

/// Runs one operation to its end.
pub(crate) fn run(store: &mut Store, op: &Op, pieces: &[Piece], mem: &Mappings) -> i64 {
    if let Some(result) = store.submit(op, pieces.iter().copied(), mem) {
        return result;
    }
    store.kick();
    loop {
        if let Some(reply) = store.reap() {
            assert_eq!(reply.id, op.id);
            return reply.result;
        }
        wait(store);
    }
}

/// Sleeps until the store has something, which it has to have within a minute.
pub(crate) fn wait(store: &Store) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = store.wake_fd().expect("an engine that ends things later");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    match poll(&mut fds, Some(&limit)) {
        Ok(0) => panic!("nothing has ended for a minute"),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => panic!("{errno}"),
    }
}

/// A directory on the disk that the build is on.
pub(crate) fn disk() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A directory in memory.
pub(crate) fn tmpfs() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

pub(crate) fn image(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// Opens and takes an image.
pub(crate) fn take(path: &Path, options: OpenOptions) -> Store {
    let mut store = Store::open(path, options).unwrap();
    match store.capture() {
        Captured::Yes => store,
        other => panic!("{other:?}"),
    }
}

/// What comes of trying to take an image that somebody has, once it is known who.
pub(crate) fn refused(store: &mut Store) -> Captured {
    let begin = Instant::now();
    loop {
        match store.capture() {
            Captured::Looking => std::thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "nobody is found");
    }
}
