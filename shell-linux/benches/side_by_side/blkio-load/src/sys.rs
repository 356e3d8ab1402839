//! The system calls, the clock, and all the unsafe they need.

use blkio::MemoryRegion;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

const HUGE_PAGE: usize = 2 << 20;

/// Pins this thread to one core.
pub fn pin(cpu: usize) -> Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(Error::other("no such core"));
    }
    // SAFETY: a zeroed cpu_set_t is an empty set, `cpu` is inside it, the call only reads it.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}

/// A counter that wakes whoever reads it.
pub fn event() -> Result<File> {
    // SAFETY: makes a descriptor that nobody else has.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Ends the process by signal once `limit` has passed.
pub fn alarm_after(limit: Duration) {
    // SAFETY: takes a number, returns a number.
    unsafe { libc::alarm(limit.as_secs() as u32 + 1) };
}

/// Memory that the target maps too. Written once, so that no page fault falls into the run.
///
/// # Errors
/// With `huge`, if the machine has not enough free 2 MiB pages.
pub fn shared_memory(len: usize, huge: bool) -> Result<MemoryRegion> {
    let (page, flags) = if huge {
        (HUGE_PAGE, libc::MFD_HUGETLB)
    } else {
        (4096, 0)
    };
    let len = len.next_multiple_of(page);
    // SAFETY: the name is a C string; the fd is fresh, has the mapped length, and is never closed.
    unsafe {
        let fd = libc::memfd_create(c"blkio-load".as_ptr(), flags | libc::MFD_CLOEXEC);
        if fd < 0 || libc::ftruncate(fd, len as libc::off_t) != 0 {
            return Err(Error::last_os_error());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::MAP_SHARED | libc::MAP_POPULATE;
        let addr = libc::mmap(std::ptr::null_mut(), len, access, map, fd, 0);
        if addr == libc::MAP_FAILED {
            let error = Error::last_os_error();
            let hint = if huge {
                " (see /proc/sys/vm/nr_hugepages)"
            } else {
                ""
            };
            return Err(Error::other(format!("guest memory: {error}{hint}")));
        }
        addr.cast::<u8>().write_bytes(0xa5, len);
        Ok(MemoryRegion {
            addr: addr as usize,
            iova: 0,
            len,
            fd,
            fd_offset: 0,
            flags: 0,
        })
    }
}

/// Nanoseconds this thread was ready to run and had no CPU; 0 where the kernel does not count.
pub fn cpu_wait_ns() -> u64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// The cheapest clock there is.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86_64 has the instruction.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// How fast `ticks` runs, by the system's clock.
pub fn ticks_per_second() -> f64 {
    let (time, tick) = (Instant::now(), ticks());
    while time.elapsed() < Duration::from_millis(50) {
        std::hint::spin_loop();
    }
    let (elapsed, tocks) = (time.elapsed(), ticks());
    (tocks - tick) as f64 / elapsed.as_secs_f64()
}
