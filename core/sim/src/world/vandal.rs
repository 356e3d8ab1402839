//! Hostile guests: rings full of garbage, and front ends that say anything.

use sluice_core::device::{ControlEvent, ControlReply, DeviceId, RegionList, RingAddresses};
use sluice_core::memory::{Region, SharedMemory};
use sluice_core::shard::Input;
use sluice_core::virtqueue::layout::{DESC_AVAIL, DESC_USED};

use super::control::user_address;
use super::{Event, World, guest};
use crate::bus::ram::Extent;
use crate::front::Message;
use crate::hostile::{Hostile, descriptor};

impl World<'_> {
    /// Spoils something in the guest's rings or memory, and kicks.
    pub(super) fn vandalize(&mut self, id: u32) {
        let index = self.prng.index(self.guests[id as usize].queues.len());
        let layout = *self.guests[id as usize].layout(index);
        let ring = Hostile { rings: layout.rings(), size: layout.size };
        for _ in 0..=self.prng.skewed(40) {
            self.spoil(id, &ring, layout.packed);
        }
        let index = u16::try_from(index).unwrap_or(0);
        let delay = self.prng.skewed(2000);
        self.clock.plan(delay, Event::Kick(id, index));
    }

    fn spoil(&mut self, id: u32, ring: &Hostile, packed: bool) {
        let chunk = self.prng.pick(&self.guests[id as usize].chunks);
        let inner = self.mem.inner();
        let (len, base) = (inner.ram.len(chunk), inner.ram.chunk(chunk).address);
        drop(inner);
        let (prng, side) = (&mut self.prng, self.mem.guest_side());
        let size = u64::from(ring.size);
        let small = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let index = small(prng.below(size));
        let address = match prng.below(8) {
            0 => prng.next(),
            1 => base + len as u64 - prng.skewed(64),
            _ => base + prng.below(len as u64),
        };
        let bytes = if prng.chance(30) { prng.next() } else { prng.skewed(4096) };
        let bytes = u32::try_from(bytes & 0xffff_ffff).unwrap_or(0);
        let flags = small(if prng.chance(30) { prng.below(1 << 16) } else { prng.below(8) });
        let next = small(if prng.chance(30) { prng.below(1 << 16) } else { prng.below(size) });
        // Of a packed descriptor these are id and flags, mostly with a lap that may be the right one.
        let lap = if prng.chance(900) { prng.pick(&[DESC_AVAIL, DESC_USED]) } else { next };
        let last = if packed { (next, flags | lap) } else { (flags, next) };
        let (region, offset) = ring.rings.avail;
        let avail = side.load_acquire_u16(region, offset + 2).unwrap_or(0);
        let done = match prng.below(16) {
            0..=5 => ring.put(&side, index, &descriptor(address, bytes, last.0, last.1)),
            6..=8 => ring.offer(&side, avail, if prng.chance(30) { next } else { index }),
            9..=11 => ring.set_avail_index(&side, avail.wrapping_add(small(prng.below(3)))),
            12 if prng.chance(50) => ring.set_avail_index(&side, small(prng.below(1 << 16))),
            12 | 13 => ring.set_wishes(&side, flags & 1, avail.wrapping_sub(index)),
            14 => ring.set_used_index(&side, small(prng.below(1 << 16))),
            _ => {
                // Headers of requests, somewhere.
                let at = prng.index(len - 16);
                let kind = u32::try_from(prng.below(15)).unwrap_or(0);
                let sector = prng.skewed(4096);
                let mut header = [0; 16];
                header[..4].copy_from_slice(&kind.to_le_bytes());
                header[8..].copy_from_slice(&sector.to_le_bytes());
                let place = Extent { chunk, at, len: 16 };
                self.mem.inner().ram.bytes_mut(place).copy_from_slice(&header);
                Ok(())
            }
        };
        debug_assert!(done.is_ok(), "its rings are in its memory");
    }

    /// Says anything at all.
    pub(super) fn babble(&mut self, id: u32) {
        use ControlEvent as E;
        let prng = &mut self.prng;
        let queues = u64::from(self.options.guests[id as usize].0.queues);
        let index = u32::try_from(prng.below(queues + 1)).unwrap_or(0);
        let wide = u32::try_from(prng.next() >> 32).unwrap_or(0);
        let index = if prng.chance(20) { wide } else { index };
        let number = if prng.chance(500) { 1 << prng.below(17) } else { prng.below(1 << 17) };
        let size = u32::try_from(number).unwrap_or(0);
        let address = user_address(self.guests[id as usize].chunks[0]) + prng.skewed(1 << 16);
        let addresses = RingAddresses {
            desc: address & !15,
            avail: address.wrapping_add(prng.skewed(1 << 14)) & !1,
            used: address.wrapping_add(prng.skewed(1 << 14)) & !3,
        };
        let event = match prng.below(20) {
            0 => E::SetOwner,
            1 => E::ResetOwner,
            2 => E::SetFeatures(prng.next()),
            3 => E::SetProtocolFeatures(prng.next()),
            4 => E::SetVringNum { index, size },
            5 => E::SetVringBase { index, base: size },
            6 | 7 => E::SetVringAddr { index, addresses },
            8..=10 => E::SetVringKick { index },
            11 => E::SetVringEnable { index, enable: prng.chance(700) },
            12..=14 => E::GetVringBase { index },
            15 => E::SetConfig { offset: size, size, value: 0 },
            16 => E::SetVringCall { index },
            17 => return self.vanish(id),
            _ => {
                let all = self.guests[id as usize].chunks.len();
                let choice = self.prng.below(3);
                let mut regions = self.wild_regions(id, if choice == 2 { all } else { 1 });
                match (choice, regions.pop()) {
                    (0, Some(region)) => E::AddMemRegion(region),
                    (1, Some(Region { guest, user, size, .. })) => {
                        let offered = core::mem::take(&mut self.fronts[id as usize].offered);
                        offered.into_iter().for_each(|region| self.mem.inner().unmap(region));
                        E::RemoveMemRegion { guest, user, size }
                    }
                    (_, last) => {
                        regions.extend(last);
                        E::SetMemTable(regions)
                    }
                }
            }
        };
        self.line(guest(id), "babble", format_args!("{event:?}"));
        self.fronts[id as usize].awaited = Some(Message::Owner);
        self.input(Input::Control(DeviceId(id), event));
    }

    /// Regions that are backed by memory, which the shell sees to, at any addresses.
    fn wild_regions(&mut self, id: u32, count: usize) -> RegionList {
        let mut regions = RegionList::new();
        for index in 0..count {
            let chunk = self.guests[id as usize].chunks[index];
            let mut inner = self.mem.inner();
            let (len, base) = (inner.ram.len(chunk) as u64, inner.ram.chunk(chunk).address);
            let region = inner.map(chunk);
            drop(inner);
            self.fronts[id as usize].offered.push(region);
            let prng = &mut self.prng;
            let exact = prng.chance(800);
            let guest = if exact { base } else { base.wrapping_sub(prng.skewed(1 << 20)) };
            let user = user_address(chunk);
            let user = if exact { user } else { user.wrapping_sub(prng.skewed(1 << 20)) };
            let size = if exact { len } else { prng.skewed(len) };
            let pushed = regions.push(Region { id: region, guest, user, size });
            debug_assert!(pushed.is_ok(), "a handful of regions");
        }
        regions
    }

    /// Whatever the answer: the next thing is said, or the connection is closed for it.
    pub(super) fn hostile_answered(&mut self, id: u32, reply: ControlReply) {
        self.fronts[id as usize].awaited = None;
        if let ControlReply::Refused(fault) = reply
            && fault.closes()
        {
            return self.vanish(id);
        }
        let delay = self.prng.skewed(self.options.control_pause);
        self.clock.plan(delay, Event::Front(id));
    }
}
