//! A file system with one file, `disk.raw`, that behaves as a test wants it to: requests that
//! do not end, syncs that fail, transfers that are cut short.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::room::mount_at;

use opcode::{
    BATCH_FORGET, FLUSH, FORGET, FSYNC, GETATTR, INIT, INTERRUPT, LOOKUP, OPEN, READ, RELEASE,
    SETATTR, STATFS, WRITE,
};

/// What the kernel asks for.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
}

/// The size of the file.
pub(crate) const BYTES: usize = 1 << 20;
/// Bytes before what a request asks for.
pub(crate) const HEADER: usize = 40;

/// How the file behaves, and what has happened to it.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    /// Writes wait until this is taken back.
    pub(crate) hold_writes: bool,
    /// Writes that have arrived.
    pub(crate) writes: u32,
    /// Syncs that have arrived.
    pub(crate) syncs: u32,
    /// Syncs that fail from now on.
    pub(crate) failing_syncs: u32,
    /// Requests of these kinds are never answered.
    pub(crate) silent: &'static [u32],
    /// Bytes that a read or write moves at most.
    pub(crate) short: Option<usize>,
    /// The block that reads and writes have to begin at, as direct I/O has it.
    pub(crate) block: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Fuse {
    dir: TempDir,
    shared: Arc<(Mutex<Behaviour>, Condvar)>,
}

impl Fuse {
    /// Mounts it. Only inside a room.
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let dir = TempDir::new().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount_at(dir.path(), "fuse", &data);
        let shared = Arc::new((Mutex::new(behaviour), Condvar::new()));
        let server = Server { device, bytes: vec![0; BYTES], shared: Arc::clone(&shared) };
        std::thread::spawn(move || server.run());
        Self { dir, shared }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.0.lock().unwrap());
        self.shared.1.notify_all();
    }

    /// Sleeps until a write has arrived.
    pub(crate) fn wait_for_write(&self) {
        let behaviour = self.shared.0.lock().unwrap();
        let (_behaviour, late) = self
            .shared
            .1
            .wait_timeout_while(behaviour, Duration::from_secs(60), |b| b.writes == 0)
            .unwrap();
        assert!(!late.timed_out(), "no write within a minute");
    }
}

struct Server {
    device: File,
    bytes: Vec<u8>,
    shared: Arc<(Mutex<Behaviour>, Condvar)>,
}

/// Puts a record together.
#[derive(Default)]
pub(crate) struct Record(pub(crate) Vec<u8>);

impl Record {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    pub(crate) fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
    /// What there is to know of a file.
    pub(crate) fn attr(self, node: u64, size: u64, mode: u32, links: u32) -> Self {
        // Number, size, blocks, three times and their nanoseconds; mode, links, owner.
        self.u64(node)
            .u64(size)
            .u64(size / 512)
            .zeroes(36)
            .u32(mode)
            .u32(links)
            .zeroes(12)
            .u32(4096)
            .u32(0)
    }
    /// Version 7.31, and bytes that a write has at most.
    pub(crate) fn init(self, transfer: u32) -> Self {
        self.u32(7)
            .u32(31)
            .u32(0)
            .u32(1 << 22)
            .u16(16)
            .u16(12)
            .u32(transfer)
            .u32(1)
            .u16(256)
            .u16(0)
            .zeroes(32)
    }
    /// A file that was opened, past the page cache.
    pub(crate) fn opened(self) -> Self {
        self.u64(0).u32(1).u32(0)
    }
}

/// The same for the files that are here.
fn attr(record: Record, node: u64) -> Record {
    let (size, mode) = if node == 1 { (0, 0o040_755) } else { (BYTES as u64, 0o100_644) };
    record.attr(node, size, mode, 1)
}

pub(crate) fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; BYTES + (1 << 16)];
        loop {
            // The mount is gone with the test.
            let Ok(len) = (&self.device).read(&mut buffer) else { return };
            let request = &buffer[..len];
            let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
            let (unique, node) = (long(request, 8), long(request, 16));
            let body = &request[HEADER..];
            if self.shared.0.lock().unwrap().silent.contains(&opcode) {
                continue;
            }
            if opcode == WRITE {
                let behaviour = &mut self.shared.0.lock().unwrap();
                behaviour.writes += 1;
                self.shared.1.notify_all();
                if behaviour.hold_writes {
                    let (device, shared) =
                        (self.device.try_clone().unwrap(), Arc::clone(&self.shared));
                    let size = word(body, 16);
                    std::thread::spawn(move || {
                        let behaviour = shared.0.lock().unwrap();
                        let _open = shared.1.wait_while(behaviour, |b| b.hold_writes).unwrap();
                        let size = u32::try_from(size).unwrap();
                        answer(&device, unique, Ok(Record::default().u32(size).u32(0)));
                    });
                    continue;
                }
            }
            if let Some(result) = self.reply(opcode, node, body) {
                answer(&self.device, unique, result);
            }
        }
    }

    fn reply(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<Result<Record, i32>> {
        let record = Record::default();
        let behaviour = &mut self.shared.0.lock().unwrap();
        let bounded = |len: usize| len.min(behaviour.short.unwrap_or(len));
        if let (READ | WRITE, Some(block)) = (opcode, behaviour.block)
            && !usize::try_from(long(body, 8)).unwrap().is_multiple_of(block)
        {
            return Some(Err(libc::EINVAL));
        }
        Some(Ok(match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => record.init(1 << 20),
            LOOKUP if body.starts_with(b"disk.raw\0") => {
                attr(record.u64(2).u64(0).u64(60).u64(60).u64(0), 2)
            }
            LOOKUP => return Some(Err(libc::ENOENT)),
            GETATTR | SETATTR => attr(record.u64(60).u64(0), node),
            OPEN => record.opened(),
            READ => {
                let at = usize::try_from(long(body, 8)).unwrap().min(BYTES);
                let len = bounded(word(body, 16).min(BYTES - at));
                Record(self.bytes[at..at + len].to_vec())
            }
            WRITE => {
                let at = usize::try_from(long(body, 8)).unwrap();
                let len = bounded(word(body, 16));
                self.bytes[at..at + len].copy_from_slice(&body[40..40 + len]);
                record.u32(u32::try_from(len).unwrap()).u32(0)
            }
            FSYNC => {
                behaviour.syncs += 1;
                if behaviour.failing_syncs > 0 {
                    behaviour.failing_syncs -= 1;
                    return Some(Err(libc::EIO));
                }
                record
            }
            FLUSH | RELEASE => record,
            STATFS => record.zeroes(80),
            _ => return Some(Err(libc::ENOSYS)),
        }))
    }
}

/// Answers a request.
pub(crate) fn answer(mut device: &File, unique: u64, result: Result<Record, i32>) {
    let (errno, body) = match result {
        Ok(record) => (0, record.0),
        Err(errno) => (errno, Vec::new()),
    };
    let len = u32::try_from(16 + body.len()).unwrap();
    let mut message = Record::default().u32(len).u32((-errno).cast_unsigned()).u64(unique).0;
    message.extend(body);
    // Fails for a request that was given up, which is all right.
    let _ = device.write_all(&message);
}
