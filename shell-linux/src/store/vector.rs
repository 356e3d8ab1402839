//! Guest memory as the kernel takes it, and the two system calls that move it.
//!
//! The rule that all unsafe code here rests on: a vector names memory of live mappings, and
//! those stay until the operation has ended, because the core holds the regions of a request
//! until it has the reply. The kernel checks the addresses again and answers EFAULT for memory
//! that has vanished from under a mapping; nothing here touches the bytes itself.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

use super::align::Alignment;

/// Entries that one system call takes (`UIO_MAXIOV`).
const ENTRIES_MAX: usize = 1024;

/// A list of memory ranges that shrinks from the front as bytes are moved.
#[derive(Debug, Default)]
pub(super) struct Vector {
    ranges: Vec<libc::iovec>,
    /// Ranges before this one are used up.
    first: usize,
    left: u64,
}

// SAFETY: the addresses are not tied to a thread, and only the kernel follows them.
unsafe impl Send for Vector {}

impl Vector {
    /// Forgets all ranges and keeps their places.
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.first = 0;
        self.left = 0;
    }

    #[inline]
    pub(super) fn push(&mut self, range: libc::iovec) {
        self.left += range.iov_len as u64;
        self.ranges.push(range);
    }

    /// Bytes still to be moved.
    #[inline]
    pub(super) const fn left(&self) -> u64 {
        self.left
    }

    /// Whether direct I/O takes all of it.
    #[inline]
    pub(super) fn suits(&self, alignment: Alignment) -> bool {
        if alignment == Alignment::NONE {
            return true;
        }
        let (memory, length) = (alignment.memory as usize, alignment.offset as usize);
        self.entries().iter().all(|range| {
            range.iov_base.addr().is_multiple_of(memory) && range.iov_len.is_multiple_of(length)
        })
    }

    /// Forgets the first `count` bytes.
    #[inline]
    pub(super) fn advance(&mut self, count: u64) {
        let mut count = count.min(self.left);
        self.left -= count;
        while let Some(range) = self.ranges.get_mut(self.first) {
            let len = range.iov_len as u64;
            if count < len {
                let count = usize::try_from(count).unwrap_or(range.iov_len);
                range.iov_base = range.iov_base.wrapping_byte_add(count);
                range.iov_len -= count;
                return;
            }
            count -= len;
            self.first += 1;
        }
    }

    /// The ranges, as many as one call takes.
    #[inline]
    pub(super) fn entries(&self) -> &[libc::iovec] {
        let entries = &self.ranges[self.first..];
        &entries[..entries.len().min(ENTRIES_MAX)]
    }

    /// Fills the front of it from a file: the bytes moved, 0 at the end of the file.
    #[inline]
    pub(super) fn read(&self, file: impl AsFd, at: u64) -> Result<u64> {
        self.call(libc::preadv, file, at)
    }

    /// Stores the front of it in a file.
    #[inline]
    pub(super) fn write(&self, file: impl AsFd, at: u64) -> Result<u64> {
        self.call(libc::pwritev, file, at)
    }

    /// Fills all of it from a file that has enough bytes.
    pub(super) fn read_all(&mut self, file: impl AsFd, at: u64) -> Result<()> {
        self.all(libc::preadv, file, at)
    }

    /// Stores all of it in a file.
    pub(super) fn write_all(&mut self, file: impl AsFd, at: u64) -> Result<()> {
        self.all(libc::pwritev, file, at)
    }

    fn all(&mut self, call: Call, file: impl AsFd, mut at: u64) -> Result<()> {
        while self.left > 0 {
            let count = self.call(call, &file, at)?;
            if count == 0 {
                return Err(Errno::IO);
            }
            self.advance(count);
            at += count;
        }
        Ok(())
    }

    #[inline]
    fn call(&self, call: Call, file: impl AsFd, at: u64) -> Result<u64> {
        let entries = self.entries();
        let count = i32::try_from(entries.len()).map_err(|_| Errno::INVAL)?;
        let at = i64::try_from(at).map_err(|_| Errno::INVAL)?;
        loop {
            // SAFETY: the entries are an array of that many ranges, and those are live (see the
            // head of this file) or refused by the kernel.
            let result = unsafe { call(file.as_fd().as_raw_fd(), entries.as_ptr(), count, at) };
            if let Ok(count) = u64::try_from(result) {
                return Ok(count);
            }
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return Err(Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))),
            }
        }
    }
}

type Call = unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize;
