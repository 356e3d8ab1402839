//! The data path allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_sim::belt::{Belt, arena, memory};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn i21_a_million_requests_allocate_nothing() {
    let (mut arena, mem) = (arena(), memory());
    for (inflight, packed) in [(false, false), (true, false), (false, true)] {
        let mut belt = Belt::new(&mut arena, &mem, inflight, packed);
        let mut ended = 0;
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        while ended < 500_000 {
            belt.feed(64);
            belt.measured_turn();
            belt.grant();
            ended += belt.reap();
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
        assert_eq!(belt.shard.counters().requests, u64::from(ended));
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(Box::new(0));
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 1, "the count counts");
}
