//! A guest's memory with one ring in it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};

use super::client::{Client, event, longs, request, words};

/// Bytes of the memory.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Where the front end has it.
pub(crate) const USER: u64 = 0x7f00_0000_0000;
/// Entries of the ring, unless a test chooses.
pub(crate) const RING: u32 = 8;

/// `VIRTIO_BLK_T_IN`.
const READ: u32 = 0;

const DESC: u64 = 0;
/// Where the available ring is.
pub(crate) const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
const HEADER: u64 = 0x8000;
/// Where the data of requests is.
pub(crate) const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;

pub(crate) struct Guest {
    pub(crate) memory: File,
    pub(crate) kick: OwnedFd,
    pub(crate) call: OwnedFd,
    ring: u32,
    available: u16,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with_ring(RING)
    }

    /// The same with a ring of so many entries, 1024 at most.
    pub(crate) fn with_ring(ring: u32) -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        memory.set_len(MEMORY).unwrap();
        Self { memory, kick: event(), call: event(), ring, available: 0 }
    }

    /// A table with all of the memory.
    pub(crate) fn table() -> Vec<u8> {
        [words(&[1, 0]), longs(&[0, MEMORY, USER, 0])].concat()
    }

    /// The same for a single region.
    pub(crate) fn region() -> Vec<u8> {
        longs(&[0, 0, MEMORY, USER, 0])
    }

    pub(crate) fn addresses(index: u32) -> Vec<u8> {
        [words(&[index, 0]), longs(&[USER + DESC, USER + USED, USER + AVAIL, 0])].concat()
    }

    /// Sets the first ring up, from the memory on.
    pub(crate) fn start(&self, client: &mut Client) {
        let memory = [self.memory.as_fd()];
        assert_eq!(client.acked(request::SET_MEM_TABLE, &Self::table(), &memory), 0);
        self.start_ring(client);
    }

    /// Sets the first ring up in memory that is known already.
    pub(crate) fn start_ring(&self, client: &mut Client) {
        assert_eq!(client.acked(request::SET_VRING_NUM, &words(&[0, self.ring]), &[]), 0);
        let base = words(&[0, self.available.into()]);
        assert_eq!(client.acked(request::SET_VRING_BASE, &base, &[]), 0);
        assert_eq!(client.acked(request::SET_VRING_ADDR, &Self::addresses(0), &[]), 0);
        let ring = 0_u64.to_ne_bytes();
        assert_eq!(client.acked(request::SET_VRING_CALL, &ring, &[self.call.as_fd()]), 0);
        assert_eq!(client.acked(request::SET_VRING_KICK, &ring, &[self.kick.as_fd()]), 0);
        assert_eq!(client.acked(request::SET_VRING_ENABLE, &words(&[0, 1]), &[]), 0);
    }

    /// Puts the read of the first sector into the ring.
    pub(crate) fn read(&mut self) {
        self.ask(READ, 0, 512);
    }

    /// Puts a request into the ring: its type, its sector and the bytes of its data, if it has any.
    pub(crate) fn ask(&mut self, kind: u32, sector: u64, len: u32) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_all_at(&header, HEADER).unwrap();
        self.chain(HEADER, if kind == READ { 3 } else { 1 }, len);
    }

    /// Puts the read of a sector into the ring, with a header that lies somewhere else.
    pub(crate) fn read_with_header(&mut self, header: u64) {
        self.chain(header, 3, 512);
    }

    fn chain(&mut self, header: u64, flags: u16, len: u32) {
        let put = |at, bytes: &[u8]| self.memory.write_all_at(bytes, at).unwrap();
        let descriptor = |at: u64, len: u32, flags: u16, next: u16| {
            let ends = [flags.to_le_bytes(), next.to_le_bytes()].concat();
            [&at.to_le_bytes()[..], &len.to_le_bytes(), &ends].concat()
        };
        let second = if len > 0 { 1 } else { 2 };
        put(DESC, &descriptor(header, 16, 1, second));
        put(DESC + 16, &descriptor(DATA, len, flags, 2));
        put(DESC + 32, &descriptor(STATUS, 1, 2, 0));
        put(STATUS, &[0xff]);
        let place = u64::from(u32::from(self.available) % self.ring);
        put(AVAIL + 4 + 2 * place, &0_u16.to_le_bytes());
        self.available += 1;
        put(AVAIL + 2, &self.available.to_le_bytes());
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Requests that were given back.
    pub(crate) fn used(&self) -> u16 {
        used(&self.memory)
    }

    /// Notifications since this was last asked.
    pub(crate) fn signals(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// The status byte of the last request.
    pub(crate) fn status(&self) -> u8 {
        let mut status = [0; 1];
        self.memory.read_exact_at(&mut status, STATUS).unwrap();
        status[0]
    }
}

/// Requests that were given back to the guest with this memory.
pub(crate) fn used(memory: &File) -> u16 {
    let mut index = [0; 2];
    memory.read_exact_at(&mut index, USED + 2).unwrap();
    u16::from_le_bytes(index)
}
