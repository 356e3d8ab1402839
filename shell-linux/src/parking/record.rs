//! What a front end has negotiated, as it is left to a successor.
//!
//! Plain state, the same that a front end keeps to start a device: the last word on everything.
//! Descriptors are numbers of parked ones.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, RingAddresses};
use sluice_core::memory::RegionId;

/// The number of a parked descriptor. None is used twice while a record lives.
pub type Serial = u32;

/// Everything that was negotiated over one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The next number of a descriptor.
    pub next: Serial,
    /// The connection; nothing else matters without one.
    pub socket: Option<Serial>,
    /// Whether the front end has become the owner.
    pub owner: bool,
    /// Device features.
    pub features: Option<u64>,
    /// Protocol features.
    pub protocol: Option<u64>,
    /// Guest memory.
    pub regions: Vec<Region>,
    /// The inflight region.
    pub inflight: Option<Inflight>,
    /// The dirty log of a migration.
    pub log: Option<Log>,
    /// Where the device may speak.
    #[serde(default)]
    pub channel: Option<Serial>,
    /// Rings by their number.
    pub rings: BTreeMap<u32, Ring>,
}

/// A memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the message")]
pub struct Region {
    pub guest: u64,
    pub user: u64,
    pub size: u64,
    pub offset: u64,
    pub file: Serial,
}

/// The inflight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the message")]
pub struct Inflight {
    pub bytes: u64,
    pub offset: u64,
    pub queues: u16,
    pub size: u16,
    pub file: Serial,
}

/// The dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the message")]
pub struct Log {
    pub bytes: u64,
    pub offset: u64,
    pub file: Serial,
}

/// A ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Entries.
    pub size: Option<u32>,
    /// Where it begins, or where it was when it was stopped.
    pub base: u32,
    /// Descriptor table, available ring, used ring.
    pub addresses: Option<[u64; 3]>,
    /// Whether it runs; the kick descriptor may be missing all the same.
    pub started: bool,
    /// Whether it is fetched from.
    pub enabled: bool,
    /// Descriptors.
    pub kick: Option<Serial>,
    /// Descriptors.
    pub call: Option<Serial>,
    /// Descriptors.
    pub err: Option<Serial>,
}

impl Ring {
    /// Whether it is more than a kick that came too early.
    const fn runs(&self) -> bool {
        self.started && self.addresses.is_some()
    }
}

/// A mapped file of an event: where in it the mapping begins, and the number it is parked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Offset in the file.
    pub offset: u64,
    /// The file.
    pub file: Serial,
}

impl Record {
    /// Takes in what was accepted, with the descriptors that came along.
    //= spec/parking.md#PRK-1
    pub fn note(&mut self, event: &ControlEvent, mapped: &[Mapped], fd: Option<Serial>) {
        use ControlEvent as E;
        let region = |region: &sluice_core::memory::Region, mapped: &Mapped| Region {
            guest: region.guest,
            user: region.user,
            size: region.size,
            offset: mapped.offset,
            file: mapped.file,
        };
        match *event {
            E::SetOwner => {
                if self.owner && self.rings.values().all(|ring| !ring.started) {
                    self.regions.clear();
                    (self.inflight, self.log) = (None, None);
                }
                self.owner = true;
            }
            E::SetBackendReq => self.channel = fd,
            E::SetFeatures(bits) => self.features = Some(bits),
            E::SetProtocolFeatures(bits) => self.protocol = Some(bits),
            E::SetMemTable(ref table) => {
                self.regions = table.iter().zip(mapped).map(|(r, m)| region(r, m)).collect();
            }
            E::AddMemRegion(ref added) => {
                self.regions.extend(mapped.first().map(|mapped| region(added, mapped)));
            }
            E::RemoveMemRegion { guest, user, size } => {
                self.regions.retain(|r| (r.guest, r.user, r.size) != (guest, user, size));
            }
            E::SetInflight { len, queues, size, .. } => {
                self.inflight = mapped.first().map(|&Mapped { offset, file }| Inflight {
                    bytes: len,
                    offset,
                    queues,
                    size,
                    file,
                });
            }
            E::GetInflight { .. } if self.rings.values().all(|ring| !ring.started) => {
                self.inflight = None;
            }
            E::SetLogBase { bytes, .. } => {
                let log = |&Mapped { offset, file }| Log { bytes, offset, file };
                self.log = mapped.first().map(log);
            }
            // What a running ring is told again is what it was told before.
            E::SetVringNum { index, .. } if self.ring(index).runs() => {}
            // A queue is given its size while it has no ring, and forgets what it had.
            E::SetVringNum { index, size } => {
                let ring = self.ring(index);
                ring.size = Some(size);
                (ring.addresses, ring.started) = (None, false);
            }
            E::SetVringBase { index, base } => self.ring(index).base = base,
            E::SetVringAddr { index, addresses } => {
                let RingAddresses { desc, avail, used } = addresses;
                self.ring(index).addresses = Some([desc, avail, used]);
            }
            E::SetVringKick { index } => {
                let ring = self.ring(index);
                (ring.started, ring.kick) = (true, fd);
            }
            E::SetVringCall { index } => self.ring(index).call = fd,
            E::SetVringErr { index } => self.ring(index).err = fd,
            E::SetVringEnable { index, enable } => self.ring(index).enabled = enable,
            E::ResetOwner
            | E::GetFeatures
            | E::GetProtocolFeatures
            | E::GetQueueNum
            | E::GetMaxMemSlots
            | E::GetConfig { .. }
            | E::SetConfig { .. }
            | E::GetInflight { .. }
            | E::GetVringBase { .. } => {}
        }
    }

    /// Takes in that a ring has stopped.
    pub fn stopped(&mut self, index: u32, base: u32) {
        let ring = self.ring(index);
        (ring.base, ring.started, ring.kick, ring.addresses) = (base, false, None, None);
    }

    fn ring(&mut self, index: u32) -> &mut Ring {
        self.rings.entry(index).or_default()
    }

    /// The parked descriptors it rests on.
    pub fn descriptors(&self) -> impl Iterator<Item = Serial> {
        let regions = self.regions.iter().map(|region| region.file);
        let rings = self.rings.values().flat_map(|ring| [ring.kick, ring.call, ring.err]).flatten();
        let records = self.inflight.map(|i| i.file).into_iter().chain(self.log.map(|l| l.file));
        let sockets = self.socket.into_iter().chain(self.channel);
        sockets.chain(regions).chain(records).chain(rings)
    }

    /// Whether its rings are packed.
    fn is_packed(&self) -> bool {
        let packed = BlkFeatures::RING_PACKED.bits();
        self.features.is_some_and(|features| features & packed != 0)
    }

    /// The events that bring a device to where this one was, with the descriptors of each. The
    /// features come before, by message. `used` tells the used index of a ring by its address.
    ///
    /// # Errors
    /// When the record does not fit together.
    //= spec/parking.md#PRK-3
    pub fn events(
        &self,
        used: impl Fn(&Self, u64) -> anyhow::Result<u16>,
    ) -> anyhow::Result<Vec<Replayed>> {
        let mut events = Vec::new();
        let mapped = |event, size, &Region { offset, file, .. }: &Region| Replayed {
            event,
            mapped: Some((size, Mapped { offset, file })),
            fd: None,
        };
        for region in &self.regions {
            let &Region { guest, user, size, .. } = region;
            let id = RegionId(0);
            let added = sluice_core::memory::Region { id, guest, user, size };
            events.push(mapped(ControlEvent::AddMemRegion(added), size, region));
        }
        if let Some(Inflight { bytes, offset, queues, size, file }) = self.inflight {
            let region = RegionId(0);
            let event = ControlEvent::SetInflight { region, offset: 0, len: bytes, queues, size };
            events.push(Replayed {
                event,
                mapped: Some((bytes, Mapped { offset, file })),
                fd: None,
            });
        }
        // Rings write as soon as they run.
        if let Some(Log { bytes, offset, file }) = self.log {
            let event = ControlEvent::SetLogBase { region: RegionId(0), bytes };
            events.push(Replayed {
                event,
                mapped: Some((bytes, Mapped { offset, file })),
                fd: None,
            });
        }
        let mut plain = |event, fd| events.push(Replayed { event, mapped: None, fd });
        if self.channel.is_some() {
            plain(ControlEvent::SetBackendReq, self.channel);
        }
        for (&index, ring) in &self.rings {
            if let Some(size) = ring.size {
                plain(ControlEvent::SetVringNum { index, size }, None);
            }
            let mut base = ring.base;
            if ring.started {
                ensure!(self.inflight.is_some(), "ring {index} runs, and nothing was tracked");
                let [_, _, address] = ring.addresses.context("a ring runs without addresses")?;
                // Where a packed ring stands is in the inflight region alone.
                if !self.is_packed() {
                    base = used(self, address)?.into();
                }
            }
            plain(ControlEvent::SetVringBase { index, base }, None);
            if let Some([desc, avail, used]) = ring.addresses {
                let addresses = RingAddresses { desc, avail, used };
                plain(ControlEvent::SetVringAddr { index, addresses }, None);
            }
            plain(ControlEvent::SetVringCall { index }, ring.call);
            plain(ControlEvent::SetVringErr { index }, ring.err);
            if ring.started {
                plain(ControlEvent::SetVringKick { index }, ring.kick);
            }
            plain(ControlEvent::SetVringEnable { index, enable: ring.enabled }, None);
        }
        Ok(events)
    }
}

/// One event of a replay.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The event.
    pub event: ControlEvent,
    /// What has to be mapped for it: bytes and where.
    pub mapped: Option<(u64, Mapped)>,
    /// The descriptor that comes along.
    pub fd: Option<Serial>,
}

/// Bytes before the record itself.
pub(super) const HEAD_BYTES: usize = 24;
/// Where the mark lies that says whether a message is being handled.
pub(super) const INSIDE: u64 = 12;
const MAGIC: u64 = u64::from_le_bytes(*b"sluicepk");
/// Of the record; another one is not understood.
const VERSION: u32 = 1;
/// A record longer than this is none.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// A record as it lies in its file, not inside a message.
///
/// # Panics
/// Never: numbers and strings can always be written down.
#[must_use]
pub fn write(record: &Record) -> Vec<u8> {
    let body = serde_json::to_vec(record).expect("a record can be written down");
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let words = [VERSION, 0, len, crc32c::crc32c(&body)];
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(body);
    bytes
}

/// The record in a file.
///
/// # Errors
/// When there is none, it is another version's, it was left inside a message, or it is torn.
//= spec/parking.md#PRK-4
pub fn parse(bytes: &[u8]) -> anyhow::Result<Record> {
    ensure!(bytes.len() <= BYTES_MAX, "the record is too long");
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES).context("there is no record")?;
    let word = |at| head[at..].first_chunk().map_or(0, |&word| u32::from_le_bytes(word));
    ensure!(head.starts_with(&MAGIC.to_le_bytes()), "this is no record");
    ensure!(word(8) == VERSION, "the record has version {}, not {VERSION}", word(8));
    if word(12) != 0 {
        bail!("the last daemon died in the middle of a message");
    }
    let body = rest.get(..word(16) as usize).context("the record is cut off")?;
    ensure!(crc32c::crc32c(body) == word(20), "the record is torn");
    serde_json::from_slice(body).context("the record is not understood")
}

#[cfg(test)]
mod tests;
