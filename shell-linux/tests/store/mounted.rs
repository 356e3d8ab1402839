//! Files that forget what was not synced, mounted: whoever uses them does so by system calls.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tempfile::TempDir;

use super::fuse::{HEADER, Record, answer, long, opcode, word};
use super::room::mount_at;
use super::volatile::{Files, Place, Volatile};

/// Bytes of a transfer at most.
const TRANSFER: u32 = 1 << 20;
/// Where the size is in what SETATTR is asked, and the bit that says so.
const NEW_SIZE: (usize, usize) = (16, 1 << 3);
/// That a sync is one of the bytes only.
const DATA_ONLY: usize = 1;

/// Sees each request before it is carried out.
type Watcher = Box<dyn FnMut(u32) + Send>;

/// The files, and what is to happen to their users.
pub(crate) struct Disk {
    pub(crate) files: Volatile,
    /// Syncs of files that fail from now on.
    pub(crate) failing_syncs: u32,
    /// Told of each request from the first sync on that has failed.
    pub(crate) watcher: Option<Watcher>,
    failed: bool,
}

pub(crate) struct Mounted {
    dir: TempDir,
    disk: Arc<Mutex<Disk>>,
}

impl Mounted {
    /// Mounts nothing but an empty directory. Only inside a room.
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount_at(dir.path(), "fuse", &data);
        let files = Volatile::new();
        let disk = Disk { files, failing_syncs: 0, watcher: None, failed: false };
        let disk = Arc::new(Mutex::new(disk));
        let served = Arc::clone(&disk);
        std::thread::spawn(move || serve(&device, &served));
        Self { dir, disk }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// What a loss of power could leave at some moment while this is done.
    pub(crate) fn during(&self, work: impl FnOnce()) -> BTreeSet<Files> {
        self.disk().files.take_seen();
        work();
        self.disk().files.take_seen()
    }

    /// What a loss of power can leave now.
    pub(crate) fn survivors(&self) -> BTreeSet<Files> {
        self.disk().files.survivors()
    }
}

fn serve(device: &File, disk: &Mutex<Disk>) {
    let mut buffer = vec![0; TRANSFER as usize + (1 << 16)];
    loop {
        // The mount is gone with the test.
        let Ok(len) = (&*device).read(&mut buffer) else { return };
        let request = &buffer[..len];
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let mut disk = disk.lock().unwrap();
        if let (true, Some(watcher)) = (disk.failed, &mut disk.watcher) {
            watcher(opcode);
        }
        let result = disk.reply(opcode, long(request, 16), &request[HEADER..]);
        disk.files.look();
        drop(disk);
        if let Some(result) = result {
            answer(device, long(request, 8), result);
        }
    }
}

/// The texts in a request, each with a zero behind it.
fn texts(bytes: &[u8]) -> impl Iterator<Item = String> {
    bytes.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned())
}

fn place(directory: u64, bytes: &[u8]) -> Place {
    (directory, texts(bytes).next().unwrap())
}

fn at(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

impl Disk {
    fn reply(&mut self, code: u32, node: u64, body: &[u8]) -> Option<Result<Record, i32>> {
        let record = Record::default();
        Some(match code {
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => return None,
            opcode::INIT => Ok(record.init(TRANSFER)),
            opcode::LOOKUP => self
                .files
                .find(&place(node, body))
                .map(|found| self.entry(found))
                .ok_or(libc::ENOENT),
            opcode::GETATTR => Ok(self.attr(record.u64(0).u64(0), node)),
            opcode::SETATTR => {
                if word(body, 0) & NEW_SIZE.1 != 0 {
                    self.files.now(node).bytes.resize(at(long(body, NEW_SIZE.0)), 0);
                }
                Ok(self.attr(record.u64(0).u64(0), node))
            }
            opcode::OPEN | opcode::OPENDIR => Ok(record.opened()),
            opcode::READ | opcode::WRITE | opcode::FALLOCATE => self.bytes(code, node, body),
            opcode::SETXATTR | opcode::GETXATTR => self.attribute(code, node, body),
            opcode::FSYNC if self.failing_syncs > 0 => {
                self.failing_syncs -= 1;
                self.failed = true;
                Err(libc::EIO)
            }
            opcode::FSYNC => {
                self.files.sync_file(node, word(body, 8) & DATA_ONLY == 0);
                Ok(record)
            }
            opcode::FSYNCDIR => {
                self.files.sync_names(node);
                Ok(record)
            }
            opcode::READDIR => Ok(self.listing(node, body)),
            opcode::RELEASE | opcode::RELEASEDIR | opcode::FLUSH => Ok(record),
            opcode::STATFS => Ok(record.zeroes(80)),
            _ => return Some(self.name(code, node, body)),
        })
    }

    /// Requests that change names.
    fn name(&mut self, code: u32, node: u64, body: &[u8]) -> Result<Record, i32> {
        match code {
            opcode::CREATE => {
                let made = self.files.make(place(node, &body[16..]), false);
                let Record(mut entry) = self.entry(made);
                entry.extend(Record::default().opened().0);
                Ok(Record(entry))
            }
            opcode::MKDIR => {
                let made = self.files.make(place(node, &body[8..]), true);
                Ok(self.entry(made))
            }
            opcode::UNLINK => {
                self.files.step(vec![(place(node, body), None)]);
                Ok(Record::default())
            }
            opcode::LINK => {
                let linked = long(body, 0);
                self.files.step(vec![(place(node, &body[8..]), Some(linked))]);
                Ok(self.entry(linked))
            }
            opcode::RENAME | opcode::RENAME2 => {
                let begin = if code == opcode::RENAME { 8 } else { 16 };
                let mut names = texts(&body[begin..]);
                let from = (node, names.next().unwrap());
                let into = (long(body, 0), names.next().unwrap());
                let moved = self.files.find(&from).ok_or(libc::ENOENT)?;
                self.files.step(vec![(from, None), (into, Some(moved))]);
                Ok(Record::default())
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn bytes(&mut self, code: u32, node: u64, body: &[u8]) -> Result<Record, i32> {
        let (begin, len) = (at(long(body, 8)), word(body, 16));
        let bytes = &mut self.files.now(node).bytes;
        match code {
            opcode::READ => {
                let begin = begin.min(bytes.len());
                Ok(Record(bytes[begin..bytes.len().min(begin + len)].to_vec()))
            }
            opcode::WRITE => {
                let end = begin + len;
                bytes.resize(bytes.len().max(end), 0);
                bytes[begin..end].copy_from_slice(&body[40..40 + len]);
                Ok(Record::default().u32(u32::try_from(len).unwrap()).u32(0))
            }
            // Space is all that can be had, no holes.
            _ if word(body, 24) == 0 => {
                bytes.resize(bytes.len().max(begin + len), 0);
                Ok(Record::default())
            }
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    fn attribute(&mut self, code: u32, node: u64, body: &[u8]) -> Result<Record, i32> {
        let (len, name) = (word(body, 0), texts(&body[8..]).next().unwrap());
        let attributes = &mut self.files.now(node).attributes;
        if code == opcode::SETXATTR {
            let begin = 8 + name.len() + 1;
            attributes.insert(name, body[begin..begin + len].to_vec());
            return Ok(Record::default());
        }
        let value = attributes.get(&name).ok_or(libc::ENODATA)?;
        match len {
            0 => Ok(Record::default().u32(u32::try_from(value.len()).unwrap()).u32(0)),
            _ if len < value.len() => Err(libc::ERANGE),
            _ => Ok(Record(value.clone())),
        }
    }

    fn entry(&self, node: u64) -> Record {
        self.attr(Record::default().u64(node).u64(0).u64(0).u64(0).u64(0), node)
    }

    fn attr(&self, record: Record, number: u64) -> Record {
        let node = self.files.node(number);
        let mode = if node.is_dir { 0o040_755 } else { 0o100_644 };
        let links = if node.is_dir { 2 } else { self.files.links(number) };
        record.attr(number, node.now.bytes.len() as u64, mode, links)
    }

    /// All names of a directory at once.
    fn listing(&self, node: u64, body: &[u8]) -> Record {
        let mut record = Record::default();
        if long(body, 8) > 0 {
            return record;
        }
        let here = self.files.names.iter().filter(|((directory, _), _)| *directory == node);
        for (index, ((_, name), &number)) in here.enumerate() {
            let len = u32::try_from(name.len()).unwrap();
            record = record.u64(number).u64(index as u64 + 1).u32(len).u32(0);
            record.0.extend(name.as_bytes());
            record = record.zeroes(name.len().next_multiple_of(8) - name.len());
        }
        record
    }
}
