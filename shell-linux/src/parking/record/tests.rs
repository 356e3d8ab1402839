use proptest::prelude::*;
use sluice_core::memory::Region as Guest;

use super::*;

const USED: u64 = 0x7000_2000;

fn region(guest: u64, user: u64) -> Guest {
    Guest { id: RegionId(9), guest, user, size: 0x10000 }
}

/// A front end with two rings, one of which runs.
fn negotiated() -> Record {
    use ControlEvent as E;
    let mut record = Record { next: 20, socket: Some(0), ..Record::default() };
    let addresses = RingAddresses { desc: 0x7000_0000, avail: 0x7000_1000, used: USED };
    let mapped = |file| [Mapped { offset: 4096, file }];
    record.note(&E::SetProtocolFeatures(0x1009), &[], None);
    record.note(&E::SetOwner, &[], None);
    record.note(&E::SetFeatures(1 << 32), &[], None);
    record.note(&E::AddMemRegion(region(0, 0x7000_0000)), &mapped(1), None);
    record.note(&E::AddMemRegion(region(0x10_0000, 0x7010_0000)), &mapped(2), None);
    let inflight =
        E::SetInflight { region: RegionId(0), offset: 0, len: 8192, queues: 2, size: 128 };
    record.note(&inflight, &mapped(3), None);
    let log = E::SetLogBase { region: RegionId(0), bytes: 4096 };
    record.note(&log, &mapped(4), None);
    for index in 0..2 {
        record.note(&E::SetVringNum { index, size: 128 }, &[], None);
        record.note(&E::SetVringBase { index, base: 7 }, &[], None);
        record.note(&E::SetVringAddr { index, addresses }, &[], None);
        record.note(&E::SetVringCall { index }, &[], Some(10 + index));
        record.note(&E::SetVringKick { index }, &[], Some(12 + index));
        record.note(&E::SetVringEnable { index, enable: true }, &[], None);
    }
    record.stopped(1, 99);
    record
}

fn events(record: &Record) -> Vec<Replayed> {
    record
        .events(|_, address| {
            assert_eq!(address, USED);
            Ok(1234)
        })
        .unwrap()
}

//= spec/parking.md#PRK-1
//= spec/parking.md#PRK-3
#[test]
fn a_record_replayed_gives_the_same_record() {
    let record = negotiated();
    let mut again = Record { next: 20, socket: Some(0), ..Record::default() };
    again.note(&ControlEvent::SetProtocolFeatures(record.protocol.unwrap()), &[], None);
    again.note(&ControlEvent::SetOwner, &[], None);
    again.note(&ControlEvent::SetFeatures(record.features.unwrap()), &[], None);
    for Replayed { event, mapped, fd } in events(&record) {
        let mapped: Vec<_> = mapped.into_iter().map(|(_, mapped)| mapped).collect();
        again.note(&event, &mapped, fd);
    }
    // A ring that runs goes on where it is, one that was stopped where it was then.
    assert_eq!((again.rings[&0].base, again.rings[&1].base), (1234, 99));
    again.rings.get_mut(&0).unwrap().base = 7;
    assert_eq!(again, record);
    assert!(!record.rings[&1].started);
    assert_eq!(record.descriptors().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 12, 10, 11]);
}

//= spec/parking.md#PRK-1
//= spec/lifecycle.md#LIF-2
#[test]
fn an_owner_who_begins_anew_leaves_no_memory() {
    let mut record = negotiated();
    let before = record.clone();
    record.note(&ControlEvent::SetOwner, &[], None);
    assert_eq!(record, before, "a ring runs");
    record.stopped(0, 99);
    record.note(&ControlEvent::SetOwner, &[], None);
    assert_eq!(record.descriptors().collect::<Vec<_>>(), [0, 10, 11]);
}

/// A ring writes as soon as it runs, into memory that has to be there, with what it takes on record
/// and every page of it in the log.
//= spec/parking.md#PRK-3
#[test]
fn memory_record_and_log_are_replayed_before_any_ring() {
    use ControlEvent as E;
    let mut record = negotiated();
    record.note(&E::SetVringKick { index: 1 }, &[], Some(13));
    record.note(&E::SetVringNum { index: 1, size: 128 }, &[], None);
    for features in [1 << 32, 1 << 32 | 1 << 26 | 1 << 34] {
        record.note(&E::SetFeatures(features), &[], None);
        let all = events(&record);
        let place = |is: fn(&E) -> bool| all.iter().rposition(|replayed| is(&replayed.event));
        let last = [
            place(|event| matches!(event, E::AddMemRegion(_))),
            place(|event| matches!(event, E::SetInflight { .. })),
            place(|event| matches!(event, E::SetLogBase { .. })),
        ];
        let ring = |event: &E| matches!(event, E::SetVringNum { .. } | E::SetVringKick { .. });
        let first = all.iter().position(|replayed| ring(&replayed.event)).unwrap();
        assert!(last.iter().all(|&at| at.unwrap() < first), "{last:?} {first}");
    }
    // And each ring's kick behind everything else that it goes by.
    let all = events(&negotiated());
    let of = |is: fn(&E) -> bool| all.iter().position(|replayed| is(&replayed.event)).unwrap();
    let kick = of(|event| matches!(event, E::SetVringKick { index: 0 }));
    for before in [
        of(|event| matches!(event, E::SetVringNum { index: 0, .. })),
        of(|event| matches!(event, E::SetVringBase { index: 0, .. })),
        of(|event| matches!(event, E::SetVringAddr { index: 0, .. })),
        of(|event| matches!(event, E::SetVringCall { index: 0 })),
        of(|event| matches!(event, E::SetVringErr { index: 0 })),
    ] {
        assert!(before < kick);
    }
}

/// What a running ring is told again leaves it running.
//= spec/parking.md#PRK-1
#[test]
fn a_size_that_is_said_again_is_no_news() {
    let record = negotiated();
    let mut again = record.clone();
    let size = record.rings[&0].size.unwrap();
    again.note(&ControlEvent::SetVringNum { index: 0, size }, &[], None);
    assert_eq!(again, record);
    assert!(record.rings[&0].started);
}

/// No index in memory says where a packed ring stands; its area does, whatever the base is.
//= spec/parking.md#PRK-3
#[test]
fn a_packed_ring_is_not_asked_for_its_index() {
    let mut record = negotiated();
    record.note(&ControlEvent::SetFeatures(1 << 32 | 1 << 34), &[], None);
    let base = 0x8003_8003;
    record.note(&ControlEvent::SetVringBase { index: 0, base }, &[], None);
    let events = record.events(|_, _| panic!("there is none")).unwrap();
    let first = ControlEvent::SetVringBase { index: 0, base };
    assert!(events.iter().any(|replayed| replayed.event == first), "{events:?}");
    record.inflight = None;
    assert!(record.events(|_, _| Ok(0)).is_err(), "without an area nobody knows");
}

#[test]
fn the_last_word_counts() {
    use ControlEvent as E;
    let mut record = negotiated();
    let before = record.clone();
    for _ in 0..1000 {
        record.note(&E::SetVringCall { index: 0 }, &[], Some(10));
        record.note(&E::SetFeatures(1 << 32), &[], None);
    }
    assert_eq!(record, before, "repeating costs nothing");
    let table = [region(0, 0x7000_0000)].into_iter().collect();
    record.note(&E::SetMemTable(table), &[Mapped { offset: 0, file: 17 }], None);
    assert_eq!(record.regions.len(), 1);
    let Guest { guest, user, size, .. } = region(0, 0x7000_0000);
    record.note(&E::RemoveMemRegion { guest, user, size }, &[], None);
    assert_eq!(record.regions.len(), 0);
    record.note(&E::SetVringCall { index: 0 }, &[], None);
    record.note(&E::SetVringKick { index: 0 }, &[], None);
    assert_eq!(record.descriptors().collect::<Vec<_>>(), [0, 3, 4, 11], "polled and silent");
}

#[test]
fn a_ring_that_nobody_tracked_is_not_taken_up() {
    let mut record = negotiated();
    record.inflight = None;
    assert!(record.events(|_, _| Ok(0)).is_err());
    record.stopped(0, 3);
    assert!(record.events(|_, _| Ok(0)).is_ok(), "one that is stopped may be");
}

//= spec/parking.md#PRK-4
#[test]
fn a_torn_record_is_none() {
    let record = negotiated();
    let bytes = write(&record);
    assert_eq!(parse(&bytes).unwrap(), record);
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "cut off at {len}");
    }
    for at in 0..bytes.len() {
        let mut torn = bytes.clone();
        torn[at] ^= 1;
        assert!(parse(&torn).is_err(), "bit 0 of byte {at}");
    }
    // A longer one that was there before leaves its end behind.
    assert_eq!(parse(&[&bytes[..], b"garbage"].concat()).unwrap(), record);
}

#[test]
fn a_marked_record_and_one_of_another_version_are_none() {
    let mut bytes = write(&negotiated());
    bytes[usize::try_from(INSIDE).unwrap()] = 1;
    assert!(parse(&bytes).unwrap_err().to_string().contains("middle of a message"));
    let mut bytes = write(&negotiated());
    bytes[8] = 2;
    assert!(parse(&bytes).unwrap_err().to_string().contains("version 2"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_replayed(
        body in prop::collection::vec(any::<u8>(), 0..200),
        whole in any::<bool>(),
    ) {
        let head = [VERSION, 0, u32::try_from(body.len()).unwrap(), crc32c::crc32c(&body)];
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend(head.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(&body);
        if let Ok(record) = parse(if whole { &bytes } else { &body }) {
            let _ = record.events(|_, _| Ok(0));
        }
    }
}
