//! A front end that takes memory back under its guest ends its own device, not the daemon.
//!
//! Touching a page of a file that has been truncated raises SIGBUS. The handler finds the mapping
//! among those registered here, puts private zero pages in its place so that the access can go
//! on, and notes the loss; the shard then ends the device. A fault anywhere else keeps its
//! default action.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

/// Mappings that can be registered at once, in all shards.
const MAPPINGS_MAX: usize = 8192;

/// One registered mapping; free while `len` is 0. The handler reads what the owner writes, so a
/// range is made visible by its length and hidden by it.
struct Entry {
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static ENTRIES: [Entry; MAPPINGS_MAX] = [const {
    Entry { start: AtomicUsize::new(0), len: AtomicUsize::new(0), lost: AtomicBool::new(false) }
}; MAPPINGS_MAX];

/// Whether any mapping was lost since somebody looked.
static ANY_LOST: AtomicBool = AtomicBool::new(false);

/// Taken to register; the handler never does.
static REGISTER: Mutex<()> = Mutex::new(());

/// A mapping's place in the table, until dropped.
#[derive(Debug)]
pub struct Guarded(usize);

impl Guarded {
    /// Registers a mapping; `None` when the table is full.
    #[must_use]
    pub fn new(start: usize, len: usize) -> Option<Self> {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let _alone = REGISTER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let free = |entry: &Entry| entry.len.load(Ordering::Relaxed) == 0;
        let index = ENTRIES.iter().position(free)?;
        ENTRIES[index].lost.store(false, Ordering::Relaxed);
        ENTRIES[index].start.store(start, Ordering::Relaxed);
        ENTRIES[index].len.store(len, Ordering::Release);
        Some(Self(index))
    }

    /// Whether the memory behind it is gone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        ENTRIES[self.0].lost.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        ENTRIES[self.0].len.store(0, Ordering::Release);
    }
}

/// Whether a look at the mappings is due, once for each loss.
#[inline]
#[must_use]
pub fn any_lost() -> bool {
    ANY_LOST.load(Ordering::Relaxed) && ANY_LOST.swap(false, Ordering::Acquire)
}

fn install() {
    // SAFETY: all zeroes is a valid `sigaction`; the handler is async-signal-safe, see there.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGBUS, &raw const action, core::ptr::null_mut());
    }
}

/// Calls nothing but `mmap` and `sigaction`, and touches nothing but atomics.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo with an address for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    for entry in &ENTRIES {
        let len = entry.len.load(Ordering::Acquire);
        let start = entry.start.load(Ordering::Relaxed);
        if address.wrapping_sub(start) >= len {
            continue;
        }
        // SAFETY: the range is a mapping of ours that nobody holds references into, so other
        // pages may stand in its place. The owner unmaps the same range later.
        let replaced = unsafe {
            libc::mmap(
                core::ptr::without_provenance_mut(start),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if replaced == libc::MAP_FAILED {
            break;
        }
        entry.lost.store(true, Ordering::Release);
        ANY_LOST.store(true, Ordering::Release);
        return;
    }
    // Not ours: the access is repeated, and this time the default action ends the process.
    // SAFETY: all zeroes is a valid `sigaction` that asks for the default.
    unsafe {
        let action: libc::sigaction = core::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &raw const action, core::ptr::null_mut());
    }
}
