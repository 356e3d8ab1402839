//! The record that a daemon finds parked: bytes that may be anything.

use sluice_core::device::{ControlEvent, RingAddresses};
use sluice_core::memory::{Region, RegionId};
use sluice_linux::parking::record::{Mapped, Record, Replayed, parse, write};

use crate::bytes::Bytes;

/// Reads bytes as a record; then a record made of them has to come back whole, and replayed has
/// to give itself.
pub fn parked_record(data: &[u8]) {
    if let Ok(record) = parse(data) {
        let _ = record.events(|_, _| Ok(0));
        assert_eq!(parse(&write(&record)).expect("its own bytes"), record);
    }
    let mut bytes = Bytes::new(data);
    let mut record = Record { next: 1 << 16, ..Record::default() };
    record.socket = bytes.bool().then(|| bytes.u8().into());
    while !bytes.is_empty() {
        let (event, mapped, fd) = event(&mut bytes);
        match event {
            ControlEvent::GetVringBase { index } => record.stopped(index, bytes.u16().into()),
            event => record.note(&event, &mapped, fd),
        }
    }
    let mut written = write(&record);
    assert_eq!(parse(&written).expect("its own bytes"), record);
    if let Ok(events) = record.events(|_, _| Ok(7)) {
        let mut again = Record { next: record.next, socket: record.socket, ..Record::default() };
        (again.owner, again.features) = (record.owner, record.features);
        again.protocol = record.protocol;
        for Replayed { event, mapped, fd } in events {
            let mapped: Vec<_> = mapped.into_iter().map(|(_, mapped)| mapped).collect();
            again.note(&event, &mapped, fd);
        }
        let bases = record.rings.iter().map(|(&index, ring)| (index, ring.base));
        for (index, base) in bases.collect::<Vec<_>>() {
            again.rings.get_mut(&index).expect("each ring").base = base;
        }
        for ring in record.rings.values_mut().filter(|ring| !ring.started) {
            ring.kick = None;
        }
        assert_eq!(again, record);
    }
    // One byte that is another one is seen, wherever it is.
    let at = bytes_at(data, written.len());
    written[at] ^= 0x55;
    assert!(parse(&written).is_err(), "byte {at}");
}

fn bytes_at(data: &[u8], len: usize) -> usize {
    data.iter().fold(0_usize, |at, &byte| at.wrapping_mul(31).wrapping_add(byte.into())) % len
}

fn event(bytes: &mut Bytes<'_>) -> (ControlEvent, Vec<Mapped>, Option<u32>) {
    use ControlEvent as E;
    let index = u32::from(bytes.u8() % 4);
    let fd = bytes.bool().then(|| bytes.u8().into());
    let mapped = vec![Mapped { offset: bytes.u16().into(), file: bytes.u8().into() }];
    let user = u64::from(bytes.u16()) << 12;
    let region = Region { id: RegionId(0), guest: user, user, size: 1 << 12 };
    let event = match bytes.u8() % 17 {
        0 => E::SetOwner,
        1 => E::SetFeatures(bytes.u64()),
        2 => E::SetProtocolFeatures(bytes.u64()),
        3 => E::SetMemTable([region].into_iter().collect()),
        4 => E::AddMemRegion(region),
        5 => E::RemoveMemRegion { guest: user, user, size: 1 << 12 },
        6 => {
            let (len, queues, size) = (bytes.u64(), bytes.u16(), bytes.u16());
            E::SetInflight { region: RegionId(0), offset: 0, len, queues, size }
        }
        15 => E::SetLogBase { region: RegionId(0), bytes: bytes.u64() },
        7 => E::SetVringNum { index, size: bytes.u32() },
        8 => E::SetVringBase { index, base: bytes.u32() },
        9 => {
            let (desc, avail, used) = (bytes.u64(), bytes.u64(), user);
            E::SetVringAddr { index, addresses: RingAddresses { desc, avail, used } }
        }
        10 => E::SetVringKick { index },
        11 => E::SetVringCall { index },
        12 => E::SetVringErr { index },
        13 => E::SetVringEnable { index, enable: bytes.bool() },
        14 => E::GetVringBase { index },
        _ => E::GetFeatures,
    };
    (event, mapped, fd)
}
