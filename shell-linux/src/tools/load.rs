//! The loop that loads one queue.
//!
//! It must cost less than the device it measures: no allocation, one clock reading and one index
//! store for each batch of completions, offsets from a table.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use sluice_sim::driver::{Buffer, RequestSpec, Shape};

use super::clock::Clock;
use crate::frontend::{GUEST, Queue};
use crate::mapping::Mappings;

/// Slowest request that the histogram tells from slower ones: a minute.
const SLOWEST_NS: u64 = 60_000_000_000;

/// Empty looks at the ring between two looks at the clock.
const SPINS: u32 = 256;

/// What threads and the one that watches them share. A line of its own, written once per batch.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Watch {
    /// Requests that came back.
    pub(super) done: AtomicU64,
    /// The device is gone.
    pub(super) abort: AtomicBool,
}

/// One queue under load.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) mem: Mappings,
    pub(super) queue: Queue,
    pub(super) watch: &'a Watch,
    pub(super) write: bool,
    /// Sleep for interrupts instead of looking at the ring.
    pub(super) sleep: bool,
    pub(super) shape: Shape,
    pub(super) bytes: u32,
    /// Offset of each request's data.
    pub(super) data: Box<[u64]>,
    /// First sectors of the next requests, over and over; a power of two.
    pub(super) sectors: Box<[u64]>,
    pub(super) next: usize,
    /// The request behind each head of the ring.
    pub(super) slots: Box<[u16]>,
    /// When each request was sent, by the clock.
    pub(super) sent: Box<[u64]>,
    pub(super) clock: Clock,
}

/// What one stretch of load found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) latencies: Histogram<u64>,
    pub(super) sum_ns: u64,
    pub(super) errors: u64,
    /// Length of the stretch.
    pub(super) ns: u64,
}

impl Found {
    pub(super) fn new() -> anyhow::Result<Self> {
        let latencies = Histogram::new_with_bounds(1, SLOWEST_NS, 2).context("histogram")?;
        Ok(Self { latencies, sum_ns: 0, errors: 0, ns: 0 })
    }

    /// Adds what another queue found at the same time.
    pub(super) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latencies.add(&other.latencies).context("histogram")?;
        self.sum_ns += other.sum_ns;
        self.errors += other.errors;
        self.ns = self.ns.max(other.ns);
        Ok(())
    }
}

impl Load<'_> {
    #[inline]
    fn now(&self) -> u64 {
        self.clock.ns()
    }

    #[inline]
    fn add(&mut self, slot: u16, now: u64) -> anyhow::Result<()> {
        let at = usize::from(slot);
        let sector = self.sectors[self.next & (self.sectors.len() - 1)];
        self.next = self.next.wrapping_add(1);
        let buffers = [Buffer { addr: GUEST + self.data[at], len: self.bytes }];
        let spec = if self.write {
            RequestSpec::write(sector, &buffers)
        } else {
            RequestSpec::read(sector, &buffers)
        };
        let tag = self.queue.driver.add(&self.mem, &spec.shaped(self.shape));
        self.slots[usize::from(tag.context("the ring is full")?.0)] = slot;
        self.sent[at] = now;
        Ok(())
    }

    /// Puts the first requests into the ring.
    pub(super) fn fill(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let depth = u16::try_from(self.data.len()).context("depth")?;
        for slot in 0..depth {
            self.add(slot, now)?;
        }
        self.queue.submit(&self.mem);
        Ok(())
    }

    /// Keeps the ring full until the clock says `end`.
    pub(super) fn run(&mut self, end: u64) -> anyhow::Result<Found> {
        let mut found = Found::new()?;
        let start = self.now();
        let mut spins = 0;
        loop {
            let (mut batch, mut now) = (0, 0);
            while let Some(done) = self.queue.driver.reap(&self.mem)? {
                if batch == 0 {
                    now = self.now();
                }
                batch += 1;
                let slot = self.slots[usize::from(done.tag.0)];
                let latency = now.saturating_sub(self.sent[usize::from(slot)]);
                found.latencies.saturating_record(latency.max(1));
                found.sum_ns += latency;
                found.errors += u64::from(done.status != 0);
                self.add(slot, now)?;
            }
            if batch > 0 {
                self.queue.submit(&self.mem);
                self.watch.done.fetch_add(batch, Ordering::Relaxed);
                if now >= end {
                    found.ns = now - start;
                    return Ok(found);
                }
                continue;
            }
            if self.sleep {
                if !self.queue.driver.arm(&self.mem)? {
                    self.queue.wait()?;
                }
            } else {
                core::hint::spin_loop();
            }
            spins += 1;
            if self.sleep || spins % SPINS == 0 {
                ensure!(!self.watch.abort.load(Ordering::Relaxed), "the back end is gone");
                // A device that answers nothing must not hold the end back.
                let now = self.now();
                if now >= end {
                    found.ns = now - start;
                    return Ok(found);
                }
            }
        }
    }

    /// Waits for what is still under way, until `end` at the latest.
    pub(super) fn drain(&mut self, end: u64) -> anyhow::Result<()> {
        self.queue.driver.disarm(&self.mem)?;
        while self.queue.driver.in_flight() > 0 {
            if self.queue.driver.reap(&self.mem)?.is_none() {
                let (left, late) = (self.queue.driver.in_flight(), self.now() >= end);
                ensure!(!late, "{left} requests did not come back");
                ensure!(!self.watch.abort.load(Ordering::Relaxed), "the back end is gone");
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}
