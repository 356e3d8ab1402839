//! Legal guests: memory, drivers, and requests of every shape that virtio allows.

mod heap;
mod wish;

pub use heap::Heap;
pub use wish::{Taste, Wish};

use std::collections::BTreeMap;

use sluice_core::memory::RegionId;
use sluice_core::virtqueue::Rings;

use crate::bus::memory::{Inner, WatchedMemory};
use crate::bus::ram::{Extent, POISON};
use crate::driver::{Buffer, Completion, Driver, Kind, Layout, RequestSpec, Shape};
use crate::prng::Prng;

/// A request that a guest waits for.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// What was asked for.
    pub wish: Wish,
    /// Its data, in order.
    pub buffers: Vec<Buffer>,
    /// What it took from the heap.
    taken: Option<(u64, u64)>,
    /// Whether the device has to answer at all.
    pub silent: bool,
}

/// One queue of a guest.
#[derive(Debug)]
pub struct GuestQueue {
    /// The driver's side.
    pub driver: Driver,
    /// What it waits for, by head.
    pub waiting: BTreeMap<u16, Outstanding>,
}

/// One guest.
#[derive(Debug)]
pub struct Guest {
    /// Its number, which is its device's too.
    pub id: u32,
    /// Its memory: chunks that follow each other in its address space, rings in the first.
    pub chunks: Vec<usize>,
    /// Its queues.
    pub queues: Vec<GuestQueue>,
    /// What it likes.
    pub taste: Taste,
    layouts: Vec<Layout>,
    heap: Heap,
    /// Address of the first byte behind the first chunk.
    first_chunk_end: u64,
    prng: Prng,
}

/// How a guest is built.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// Its number.
    pub id: u32,
    /// Its queues.
    pub queues: u16,
    /// The size of its rings, a power of two unless they are packed.
    pub size: u16,
    /// Whether its rings are packed.
    pub packed: bool,
    /// Entries of its indirect tables, 0 for none.
    pub table_entries: u16,
    /// Chunks of memory besides the first.
    pub more_chunks: u64,
    /// Whether its memory is not watched.
    pub open: bool,
}

impl Guest {
    /// A guest with its memory, and empty rings in it.
    #[must_use]
    pub fn new(mem: &WatchedMemory, mut prng: Prng, build: Build) -> Self {
        let address = prng.pick(&[0, 0x10_0000, 0x1_0000_0000]);
        let mut inner = mem.inner();
        let first = inner.ram.chunk_count();
        let region = RegionId(u32::try_from(first).unwrap_or(u32::MAX));
        let mut at = prng.skewed(4096);
        let mut layouts = Vec::new();
        for _ in 0..build.queues {
            let new = if build.packed { Layout::packed } else { Layout::new };
            let layout = new(region, address, at, build.size, build.table_entries);
            at = layout.end() + prng.skewed(256);
            layouts.push(layout);
        }
        let mut end = (at + 0x4000 + prng.skewed(0x8000)).next_multiple_of(0x1000);
        let (heap_start, first_chunk_end) = (address + at, address + end);
        let mut chunks = vec![inner.ram.add(build.id, address, to_len(end), build.open)];
        for _ in 0..build.more_chunks {
            let len = 0x1000 * prng.between(1, 12);
            chunks.push(inner.ram.add(build.id, address + end, to_len(len), build.open));
            end += len;
        }
        drop(inner);
        let heap = Heap::new(heap_start, address + end - heap_start);
        let taste = Taste::draw(&mut prng);
        let (id, queues) = (build.id, Vec::new());
        let mut guest = Self { id, chunks, queues, taste, layouts, heap, first_chunk_end, prng };
        for index in 0..guest.layouts.len() {
            let driver = guest.driver(mem, index, false);
            guest.queues.push(GuestQueue { driver, waiting: BTreeMap::new() });
        }
        guest
    }

    fn driver(&self, mem: &WatchedMemory, index: usize, event_idx: bool) -> Driver {
        let layout = self.layouts[index];
        let who = (self.id, u16::try_from(index).unwrap_or(u16::MAX));
        let mut inner = mem.inner();
        let Inner { ram, bus, .. } = &mut *inner;
        bus.remove(ram, who);
        drop(inner);
        let driver = Driver::new(&mem.guest_side(), layout, event_idx).expect("it has its memory");
        let extent = |(region, offset): (RegionId, u64), len| Extent {
            chunk: region.0 as usize,
            at: to_len(offset),
            len: to_len(len),
        };
        let Rings { desc, avail, used } = layout.rings();
        let rings = [
            extent(desc, layout.avail - layout.desc),
            extent(avail, layout.used - layout.avail),
            extent(used, layout.slots - layout.used),
        ];
        let mut inner = mem.inner();
        let Inner { ram, bus, .. } = &mut *inner;
        if !ram.chunk(self.chunks[0]).open {
            bus.add(who, &layout, rings);
        }
        driver
    }

    /// Where a queue's rings lie.
    #[must_use]
    pub fn layout(&self, index: usize) -> &Layout {
        &self.layouts[index]
    }

    /// The driver begins anew with an empty ring. Says what it had been waiting for.
    pub fn reset_queue(
        &mut self,
        mem: &WatchedMemory,
        index: usize,
        event_idx: bool,
    ) -> BTreeMap<u16, Outstanding> {
        self.queues[index].driver = self.driver(mem, index, event_idx);
        let forgotten = core::mem::take(&mut self.queues[index].waiting);
        for (start, len) in forgotten.values().filter_map(|request| request.taken) {
            self.heap.give(start, len);
        }
        forgotten
    }

    /// Whether a queue may take another request.
    #[must_use]
    pub fn is_hungry(&self, index: usize) -> bool {
        (self.queues[index].waiting.len() as u64) < self.taste.depth_max
    }

    /// Puts a request into a ring, without showing it to the device. `None` when there is no
    /// room for it. `fill` says what a write writes.
    pub fn add(
        &mut self,
        mem: &WatchedMemory,
        index: usize,
        wish: Wish,
        fill: impl FnOnce(&Wish, &mut [u8]),
    ) -> Option<u16> {
        let shape = self.draw_shape();
        let taken = if wish.bytes > 0 {
            Some((self.heap.take(&mut self.prng, wish.bytes + 17)?, wish.bytes + 17))
        } else {
            None
        };
        let start = taken.map_or(0, |(start, _)| start + 16);
        let buffers = self.cut(start, wish.bytes);
        self.prepare(mem, &wish, &buffers, fill);
        let inline = buffers.first().is_some_and(|first| self.holds_inline(first.addr, first.len));
        let inline_end = buffers.last().is_some_and(|last| self.holds_inline(last.addr, last.len));
        // The byte before or behind a buffer is free only at the ends of what was taken.
        let first_at_start = buffers.first().is_some_and(|first| first.addr == start);
        let last_at_end = buffers
            .last()
            .is_some_and(|last| last.addr + u64::from(last.len) == start + wish.bytes);
        let shape = Shape {
            header_inline: shape.header_inline && inline && first_at_start,
            status_inline: shape.status_inline && inline_end && last_at_end,
            ..shape
        };
        let silent = wish.kind == Kind::Flush && self.prng.chance(30);
        let spec = RequestSpec {
            kind: wish.kind,
            sector: wish.sector,
            buffers: &buffers,
            ranges: &wish.ranges,
            shape,
            silent,
        };
        let queue = &mut self.queues[index];
        let Some(tag) = queue.driver.add(&mem.guest_side(), &spec) else {
            if let Some((start, len)) = taken {
                self.heap.give(start, len);
            }
            return None;
        };
        let request = Outstanding { wish, buffers, taken, silent };
        self.queues[index].waiting.insert(tag.0, request);
        Some(tag.0)
    }

    /// Takes the next request that has come back.
    ///
    /// # Errors
    /// When the device has broken the queue.
    pub fn reap(
        &mut self,
        mem: &WatchedMemory,
        index: usize,
    ) -> Result<Option<(Completion, Outstanding)>, String> {
        let queue = &mut self.queues[index];
        let done = queue.driver.reap(&mem.guest_side()).map_err(|fault| fault.to_string())?;
        let Some(done) = done else { return Ok(None) };
        let request = queue.waiting.remove(&done.tag.0).ok_or("nobody waits for it")?;
        if let Some((start, len)) = request.taken {
            self.heap.give(start, len);
        }
        Ok(Some((done, request)))
    }

    /// The bytes that a request has read.
    #[must_use]
    pub fn data(&self, mem: &WatchedMemory, request: &Outstanding) -> Vec<u8> {
        let inner = mem.inner();
        let mut data = Vec::new();
        for buffer in &request.buffers {
            let places = inner.ram.find(self.id, buffer.addr, buffer.len as usize);
            for place in places.expect("a guest's buffers are in its memory") {
                data.extend_from_slice(inner.ram.bytes(place));
            }
        }
        data
    }

    fn draw_shape(&mut self) -> Shape {
        let prng = &mut self.prng;
        let cut = if prng.chance(700) { 16 } else { prng.between(1, 15) };
        Shape {
            header_cut: u8::try_from(cut).unwrap_or(16),
            header_inline: prng.chance(200),
            status_inline: prng.chance(200),
            indirect: self.layouts[0].table_entries > 0 && prng.chance(600),
        }
    }

    /// Whether a header before it and a status behind it would lie in the first chunk too.
    fn holds_inline(&self, address: u64, len: u32) -> bool {
        let layout = &self.layouts[0];
        address >= layout.guest + 16 && address + u64::from(len) < self.first_chunk_end
    }

    /// Cuts data into segments of any length, not always in the order of their addresses.
    fn cut(&mut self, start: u64, bytes: u64) -> Vec<Buffer> {
        let prng = &mut self.prng;
        let (mut buffers, mut at, end) = (Vec::new(), start, start + bytes);
        let most = 1 + prng.skewed(self.taste.segments_max - 1);
        while at < end {
            let rest = end - at;
            let last = buffers.len() as u64 + 1 == most;
            let len = if last { rest } else { 1 + prng.skewed(rest - 1) };
            buffers.push(Buffer { addr: at, len: u32::try_from(len).unwrap_or(u32::MAX) });
            at += len;
        }
        if prng.chance(300) && buffers.len() > 2 {
            let (a, b) = (prng.index(buffers.len()), prng.index(buffers.len()));
            buffers.swap(a, b);
        }
        // An empty buffer may be anywhere, in memory or not.
        if prng.chance(50) && buffers.len() > 1 {
            let place = prng.between(1, buffers.len() as u64 - 1);
            buffers.insert(to_len(place), Buffer { addr: prng.next(), len: 0 });
        }
        buffers
    }

    /// Fills what a write writes, and poisons what a read should fill.
    fn prepare(
        &self,
        mem: &WatchedMemory,
        wish: &Wish,
        buffers: &[Buffer],
        fill: impl FnOnce(&Wish, &mut [u8]),
    ) {
        let mut data = vec![POISON; to_len(wish.bytes)];
        if wish.kind == Kind::Write {
            fill(wish, &mut data);
        }
        let mut inner = mem.inner();
        let mut from = &data[..];
        for buffer in buffers {
            let places = inner.ram.find(self.id, buffer.addr, buffer.len as usize);
            for place in places.expect("a guest's buffers are in its memory") {
                let (now, rest) = from.split_at(place.len);
                inner.ram.bytes_mut(place).copy_from_slice(now);
                from = rest;
            }
        }
    }
}

/// A number of bytes of memory, which fits.
fn to_len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("simulated memory is small")
}
