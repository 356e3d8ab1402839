//! Rings that keep the shard busy.

use sluice_core::device::{ControlEvent, ControlReply, RingAddresses};
use sluice_core::limits::QUEUE_BATCH;
use sluice_core::shard::Budget;
use sluice_sim::rig::{RING_BYTES, Rig, Setup};

use super::{HEADER, I, IN, N, R, STATUS, TABLE, W, rig};

/// An endless supply of the cheapest invalid request: a head without anything.
fn flood(rig: &mut Rig<'_>, size: u16) {
    for head in 0..size {
        rig.desc(head, (0, 0, 0, 0));
        rig.entry(rig.avail_index().wrapping_add(head), head);
    }
    rig.set_avail(rig.avail_index().wrapping_add(size));
}

//= spec/limits.md#LIM-1
//= spec/limits.md#LIM-3
#[test]
fn b71_a_flood_of_invalid_requests_has_its_turn_and_no_more() {
    let size = 256;
    rig!(rig, Setup { size, ..Setup::default() });
    flood(&mut rig, size);
    let budget = Budget { chains: 1000, ..Budget::of_turn(0) };
    let batch = u32::from(QUEUE_BATCH);
    let work = rig.shard.poll_queues(rig.mem, budget);
    assert_eq!(work.chains, batch, "one batch a visit");
    let work = rig.shard.poll_queues(rig.mem, Budget { chains: 5, ..Budget::of_turn(0) });
    assert_eq!(work.chains, 5, "or what the caller allows");
    let mut rounds = 0;
    while rig.shard.poll_queues(rig.mem, budget).chains > 0 {
        rig.give_back(rig.mem);
        rounds += 1;
        assert!(rounds < 20);
    }
    assert_eq!(rig.used().len(), usize::from(size));
    assert_eq!(rig.shard.counters().unanswerable, u64::from(size));
    let events = core::iter::from_fn(|| rig.shard.poll_trace()).count();
    assert!(events < 10, "no event per request: {events}");
}

//= spec/limits.md#LIM-3
#[test]
fn b71_the_neighbour_of_a_flood_is_served_in_the_same_poll() {
    let size = 256;
    rig!(rig, Setup { size, ..Setup::default() });
    // A second queue of four entries behind the first, with one good chain.
    let RingAddresses { desc, .. } = rig.addresses();
    let at = RING_BYTES - 0x1000;
    let addresses =
        RingAddresses { desc: desc + at, avail: desc + at + 0x100, used: desc + at + 0x200 };
    let ring = sluice_sim::rig::RING_GUEST + at;
    rig.put(ring, &[0; 0x300]);
    let index = 1;
    for event in [
        ControlEvent::SetVringNum { index, size: 4 },
        ControlEvent::SetVringBase { index, base: 0 },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
    ] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
    rig.header(HEADER, IN, 0);
    rig.table(TABLE, &[(HEADER, 16, N, 1), (super::DATA, 512, W | N, 2), (STATUS, 1, W, 0)]);
    rig.table(ring, &[(TABLE, 48, I, R)]);
    rig.put(ring + 0x102, &[1, 0]);
    flood(&mut rig, size);
    rig.turn();
    assert_eq!(rig.get(ring + 0x202, 2), [1, 0], "served in the first turn");
    assert_eq!(rig.get(STATUS, 1), [super::OK]);
    assert_eq!(rig.used().len(), usize::from(QUEUE_BATCH));
}
