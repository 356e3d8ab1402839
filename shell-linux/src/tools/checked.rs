//! One queue of a verifying guest: every answer is checked.

use core::sync::atomic::Ordering;

use anyhow::{Context, bail, ensure};
use sluice_core::blk::request::{RANGE_UNMAP, RangeWire};
use sluice_core::memory::Segment;
use sluice_sim::driver::{Buffer, Completion, Kind, RequestSpec, STATUS_UNTOUCHED};
use sluice_sim::history::{Content, Flush, Read, SECTOR, Stamp, Write};
use sluice_sim::prng::Prng;
use zerocopy::byteorder::little_endian::{U32, U64};

use super::plan::{Area, Plan, What};
use super::shared::{Shared, Tally};
use crate::frontend::{GUEST, Queue, REGION};
use crate::mapping::Mappings;

#[derive(Debug)]
enum Ticket {
    None,
    Read(Read),
    Write(Write),
    Flush(Flush),
}

#[derive(Debug)]
struct Request {
    plan: Plan,
    buffers: Vec<Buffer>,
    /// Offset of its data.
    data: u64,
    ticket: Ticket,
}

/// One queue, its requests and its thread's tools.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    mem: Mappings,
    pub(super) queue: Queue,
    shared: &'a Shared,
    area: Area,
    prng: Prng,
    requests: Vec<Request>,
    free: Vec<u16>,
    /// The request behind each head of the ring.
    slots: Vec<u16>,
    payload: Vec<u8>,
    contents: Vec<Content>,
    pub(super) tally: Tally,
}

impl<'a> Checked<'a> {
    pub(super) fn new(
        mem: Mappings,
        queue: Queue,
        shared: &'a Shared,
        area: Area,
        seed: u64,
        data: impl Iterator<Item = u64>,
    ) -> Self {
        let requests: Vec<_> = data
            .map(|data| Request {
                plan: Plan::NOTHING,
                buffers: Vec::new(),
                data,
                ticket: Ticket::None,
            })
            .collect();
        Self {
            mem,
            shared,
            area,
            prng: Prng::new(seed),
            free: (0..).take(requests.len()).collect(),
            slots: vec![0; queue.driver.layout().size.into()],
            queue,
            requests,
            payload: Vec::new(),
            contents: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Sends what the seed says until the budget or the time is over, and waits for the rest.
    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut sending = true;
        loop {
            let burst = self.prng.below(self.free.len() as u64 + 1);
            for _ in 0..burst.max(u64::from(self.queue.driver.in_flight() == 0)) {
                sending = sending && self.shared.may_send();
                let Some(slot) = (if sending { self.free.pop() } else { None }) else { break };
                self.requests[usize::from(slot)].plan.draw(&mut self.prng, &self.area);
                self.send(slot)?;
            }
            self.queue.submit(&self.mem);
            if !sending && self.queue.driver.in_flight() == 0 {
                return Ok(());
            }
            self.reap_some()?;
        }
    }

    /// Reads the whole area.
    pub(super) fn read_back(&mut self) -> anyhow::Result<()> {
        let mut next = 0;
        loop {
            while next < self.area.sectors {
                let Some(slot) = self.free.pop() else { break };
                let sectors = self.area.longest().min(self.area.sectors - next);
                let count = u32::try_from(sectors).context("sectors")?;
                self.requests[usize::from(slot)].plan.read(next, count);
                self.send(slot)?;
                next += sectors;
            }
            self.queue.submit(&self.mem);
            if self.queue.driver.in_flight() == 0 {
                return Ok(());
            }
            self.reap_some()?;
        }
    }

    /// Takes what came back. If nothing did, looks again or sleeps, by chance.
    fn reap_some(&mut self) -> anyhow::Result<()> {
        let mut idle = 0;
        loop {
            let (mut reaped, deaths) = (0, self.shared.deaths());
            while let Some(done) = self.queue.driver.reap(&self.mem)? {
                self.complete(done)?;
                reaped += 1;
            }
            if reaped > 0 {
                self.queue.note_seen();
                self.shared.done.fetch_add(reaped, Ordering::Relaxed);
                return Ok(());
            }
            self.shared.has_seen(self.queue.index(), deaths);
            if self.shared.abort.load(Ordering::Relaxed) {
                bail!("{} requests did not come back", self.queue.driver.in_flight());
            }
            idle += 1;
            if idle < 100 && self.prng.chance(980) {
                core::hint::spin_loop();
            } else if !self.queue.driver.arm(&self.mem)? {
                self.queue.wait()?;
                self.tally.interrupts += 1;
                let aborted = self.shared.abort.load(Ordering::Relaxed);
                let missed = aborted && self.queue.driver.reap(&self.mem)?.is_some();
                ensure!(!missed, "a request came back without the interrupt that was asked for");
            }
        }
    }

    fn send(&mut self, slot: u16) -> anyhow::Result<()> {
        let request = &mut self.requests[usize::from(slot)];
        let Plan { what, first, sectors, unmap, shape, .. } = request.plan;
        request.buffers.clear();
        if request.plan.has_data() {
            let mut at = request.data + 16;
            for &(len, gap) in &request.plan.segments {
                at += u64::from(gap);
                request.buffers.push(Buffer { addr: GUEST + at, len });
                at += u64::from(len);
            }
        }
        // The history has to know before the device can.
        let mut history = self.shared.history();
        request.ticket = match what {
            What::Read => Ticket::Read(history.read_invoked()),
            What::Write => {
                let writer = u32::from(self.queue.index());
                Ticket::Write(history.write_invoked(writer, first, sectors))
            }
            What::Zero => Ticket::Write(history.zero_invoked(first, sectors)),
            What::Discard => Ticket::Write(history.discard_invoked(first, sectors)),
            What::Flush => Ticket::Flush(history.flush_invoked()),
        };
        // What a device leaves unwritten of a read must not look like a sector.
        self.payload.clear();
        if request.plan.has_data() {
            self.payload.resize(512 * sectors as usize, 0xee);
        }
        if let (What::Write, Ticket::Write(write)) = (what, &request.ticket) {
            let stamp = history.stamp(write, first);
            drop(history);
            for (bytes, sector) in self.payload.as_chunks_mut::<SECTOR>().0.iter_mut().zip(first..)
            {
                Stamp { sector, ..stamp }.fill(bytes);
            }
        } else {
            drop(history);
        }
        let mut rest = &self.payload[..];
        for buffer in &request.buffers {
            let (piece, behind) = rest.split_at(buffer.len as usize);
            self.mem.copy_in(piece, segment(buffer)).ok().context("memory")?;
            rest = behind;
        }
        let range = [RangeWire {
            sector: U64::new(first),
            sectors: U32::new(sectors),
            flags: U32::new(if what == What::Zero && unmap { RANGE_UNMAP } else { 0 }),
        }];
        let spec = RequestSpec {
            kind: kind(what),
            sector: if request.plan.has_data() { first } else { 0 },
            buffers: &request.buffers,
            ranges: if matches!(what, What::Zero | What::Discard) { &range } else { &[] },
            shape,
            silent: false,
        };
        let tag = self.queue.driver.add(&self.mem, &spec).context("the ring is full")?;
        self.slots[usize::from(tag.0)] = slot;
        self.shared.asks(self.queue.index(), tag.0);
        Ok(())
    }

    fn complete(&mut self, done: Completion) -> anyhow::Result<()> {
        let slot = self.slots[usize::from(done.tag.0)];
        self.shared.came_back(self.queue.index(), done.tag.0);
        let request = &mut self.requests[usize::from(slot)];
        let Plan { what, first, sectors, .. } = request.plan;
        let bytes = 512 * u64::from(sectors);
        let writable = if what == What::Read { bytes + 1 } else { 1 };
        if u64::from(done.used_len) > writable {
            self.shared.violated(format!(
                "{what:?} at sector {first}: the device says it wrote {} bytes into {writable}",
                done.used_len
            ));
        }
        if done.status == STATUS_UNTOUCHED {
            self.shared.violated(format!("{what:?} at sector {first}: no status was written"));
        }
        let good = done.status == 0;
        self.tally.count(what, bytes, good);
        match core::mem::replace(&mut request.ticket, Ticket::None) {
            Ticket::Read(read) if good => {
                self.payload.resize(512 * sectors as usize, 0);
                let mut rest = &mut self.payload[..512 * sectors as usize];
                for buffer in &request.buffers {
                    let (piece, behind) = rest.split_at_mut(buffer.len as usize);
                    self.mem.copy_out(segment(buffer), piece).ok().context("memory")?;
                    rest = behind;
                }
                self.contents.clear();
                let read_bytes = &self.payload[..512 * sectors as usize];
                self.contents.extend(read_bytes.as_chunks().0.iter().map(Content::of));
                let mut contents = self.contents.iter().copied();
                let verdict = self.shared.history().read_done_contents(read, first, &mut contents);
                if let Err(violation) = verdict {
                    self.shared.violated(violation.to_string());
                }
            }
            Ticket::Read(read) => self.shared.history().read_failed(read),
            Ticket::Write(write) if good => self.shared.history().write_done(write),
            Ticket::Write(write) => self.shared.history().write_failed(write),
            Ticket::Flush(flush) if good => self.shared.history().flush_done(flush),
            Ticket::Flush(_) | Ticket::None => {}
        }
        self.free.push(slot);
        Ok(())
    }
}

const fn kind(what: What) -> Kind {
    match what {
        What::Read => Kind::Read,
        What::Write => Kind::Write,
        What::Zero => Kind::WriteZeroes,
        What::Discard => Kind::Discard,
        What::Flush => Kind::Flush,
    }
}

const fn segment(buffer: &Buffer) -> Segment {
    Segment::new(REGION, buffer.addr - GUEST, buffer.len)
}
