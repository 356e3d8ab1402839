//! Ring indices and heads.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{ControlEvent, ControlReply};
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::virtqueue::QueueFault;
use sluice_core::virtqueue::layout::{USED_IDX, USED_RING};
use sluice_sim::rig::{RING, Rig, Setup};

use super::{HEADER, IN, OK, R, STATUS, W, rig};

/// A read of one sector in descriptors 0 to 2.
fn read_chain(rig: &Rig<'_>) {
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, R), (super::DATA, 512, W), (STATUS, 1, W)]);
}

/// Flushes of one descriptor pair each: as many heads as there are pairs.
fn flushes(rig: &Rig<'_>, count: u16) {
    rig.header(HEADER, super::FLUSH, 0);
    for head in (0..2 * count).step_by(2) {
        rig.desc(head, (HEADER, 16, super::N, head + 1));
        rig.desc(head + 1, (STATUS, 1, W, 0));
    }
}

//= spec/virtqueue.md#VQ-3
#[test]
fn b50_an_index_jump_breaks_the_queue() {
    for jump in [17, 100, 0x8000, 0xffff] {
        rig!(rig);
        read_chain(&rig);
        rig.set_avail(jump);
        rig.turn();
        assert_eq!(rig.broken, Some(QueueFault::IndexJump), "{jump}");
        assert_eq!(rig.shard.counters().requests, 0, "nothing was taken");
        // A broken queue stays broken, even if the index comes back.
        rig.set_avail(0);
        assert_eq!(rig.run(0), []);
    }
    rig!(rig);
    read_chain(&rig);
    assert_eq!(rig.run(0), [(0, 513)]);
}

//= spec/virtqueue.md#VQ-3
#[test]
fn b51_an_index_that_moves_backwards_breaks_the_queue() {
    rig!(rig);
    read_chain(&rig);
    assert_eq!(rig.run(0), [(0, 513)]);
    rig.set_avail(0);
    rig.turn();
    assert_eq!(rig.broken, Some(QueueFault::IndexJump));
    // One that goes to and fro inside what the ring holds is served, a bounded part at a time.
    rig!(rig);
    flushes(&rig, 8);
    for head in 0..8 {
        rig.entry(head, 2 * head);
    }
    rig.set_avail(8);
    rig.set_avail(3);
    rig.turn();
    assert_eq!(rig.used().len(), 3);
    rig.set_avail(8);
    rig.turn();
    assert_eq!((rig.used().len(), rig.broken), (5, None));
}

//= spec/virtqueue.md#VQ-5
#[test]
fn b52_a_head_that_is_in_flight_breaks_the_queue() {
    rig!(rig);
    read_chain(&rig);
    rig.offer(0);
    rig.offer(0);
    rig.turn();
    assert_eq!(rig.broken, Some(QueueFault::HeadInFlight));
    assert_eq!(rig.used(), [(0, 513)], "what was under way still ends, once");

    // The same, with the first one held up in the store.
    rig!(rig);
    read_chain(&rig);
    rig.offer(0);
    rig.take_in(rig.mem);
    let ops = rig.ops();
    rig.offer(0);
    rig.turn();
    assert_eq!(rig.broken, Some(QueueFault::HeadInFlight));
    assert_eq!(rig.used(), []);
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, 513)]);
    let index = 0;
    let base = ControlReply::VringBase { index: 0, base: 1 };
    assert_eq!(rig.control(ControlEvent::GetVringBase { index }), Some(base));

    // Given back, it may come again.
    rig!(rig);
    read_chain(&rig);
    assert_eq!([rig.run(0), rig.run(0)], [[(0, 513)], [(0, 513)]]);
}

//= spec/virtqueue.md#VQ-4
#[test]
fn b53_a_head_outside_the_table_breaks_the_queue() {
    for bad in [16, 17, 0x8000, 0xffff] {
        rig!(rig);
        read_chain(&rig);
        rig.offer(0);
        rig.offer(bad);
        rig.turn();
        assert_eq!(rig.broken, Some(QueueFault::BadHead), "{bad}");
        assert_eq!(rig.used(), [(0, 513)], "the chain before it was good");
    }
    rig!(rig);
    rig.header(HEADER, IN, 0);
    rig.desc(15, (HEADER, 16, super::N, 0));
    rig.desc(0, (super::DATA, 512, W | super::N, 14));
    rig.desc(14, (STATUS, 1, W, 0));
    assert_eq!(rig.run(15), [(15, 513)], "the last descriptor is a good head");
}

#[test]
fn b65_what_the_used_ring_says_is_not_believed() {
    rig!(rig);
    read_chain(&rig);
    assert_eq!(rig.run(0), [(0, 513)]);
    let used = rig.used_ring();
    rig.mem.fill(RING, used + USED_IDX, &0x1234_u16.to_le_bytes());
    rig.mem.fill(RING, used + USED_RING, &[0xff; 64]);
    rig.offer(0);
    rig.turn();
    assert_eq!(rig.mem.dump(RING, used + USED_IDX, 2), 2_u16.to_le_bytes());
    assert_eq!(rig.used(), [(0, 513)], "in the second place");
    assert_eq!(rig.broken, None);
}

//= spec/virtqueue.md#VQ-12
#[test]
fn b66_wild_event_indices_cost_notifications_and_nothing_else() {
    let mut setup = Setup::default();
    setup.features |= BlkFeatures::EVENT_IDX;
    let used_event = |rig: &Rig<'_>, at: u16| {
        rig.mem.fill(RING, rig.avail() + 4 + 2 * 16, &at.to_le_bytes());
    };
    for (event, expected) in [(0, 1), (1, 0), (0x8000, 0), (0xffff, 0)] {
        rig!(rig, setup.clone());
        read_chain(&rig);
        used_event(&rig, event);
        assert_eq!(rig.run(0), [(0, 513)]);
        assert_eq!(rig.notified, expected, "used index 0 to 1, asked for {event}");
    }
    // Over the wrap.
    rig!(rig, Setup { base: 0xffff, ..setup });
    read_chain(&rig);
    used_event(&rig, 0xffff);
    assert_eq!(rig.run(0), [(0, 513)]);
    assert_eq!(rig.notified, 1);
    // Flags that do not exist are not looked at.
    rig!(rig);
    read_chain(&rig);
    rig.mem.fill(RING, rig.avail(), &0xfffe_u16.to_le_bytes());
    assert_eq!(rig.run(0), [(0, 513)]);
    assert_eq!(rig.notified, 1);
    rig.mem.fill(RING, rig.avail(), &[1, 0]);
    assert_eq!(rig.run(0), [(0, 513)]);
    assert_eq!(rig.notified, 1, "asked not to be told");
}

//= spec/virtqueue.md#VQ-3
#[test]
fn b67_a_full_ring_is_not_an_empty_one() {
    for size in [1, 2, 4, 16] {
        for base in [0, 0xfff8] {
            rig!(rig, Setup { size, base, ..Setup::default() });
            rig.header(HEADER, super::FLUSH, 0);
            rig.table(super::TABLE, &[(HEADER, 16, super::N, 1), (STATUS, 1, W, 0)]);
            for head in 0..size {
                rig.desc(head, (super::TABLE, 32, super::I, 0));
                rig.entry(base.wrapping_add(head), head);
            }
            rig.set_avail(base.wrapping_add(size));
            rig.turn();
            assert_eq!(rig.used().len(), usize::from(size));
            rig.set_avail(base.wrapping_add(size).wrapping_add(size + 1));
            rig.turn();
            assert_eq!(rig.broken, Some(QueueFault::IndexJump), "one more does not fit");
        }
    }
}

//= spec/virtqueue.md#VQ-2
#[test]
fn b68_indices_wrap_at_every_size_with_and_without_polling() {
    for event_idx in [false, true] {
        for size in (0..=10).map(|log| 1 << log) {
            let mut setup = Setup { size, base: 0xffff - 2, ..Setup::default() };
            setup.features.set(BlkFeatures::EVENT_IDX, event_idx);
            rig!(rig, setup);
            rig.header(HEADER, super::FLUSH, 0);
            rig.table(super::TABLE, &[(HEADER, 16, super::N, 1), (STATUS, 1, W, 0)]);
            rig.desc(0, (super::TABLE, 32, super::I, 0));
            for turn in 0..6 {
                if turn % 2 == 0 {
                    // The driver is asked for a kick, and kicks.
                    assert_eq!(rig.shard.arm(rig.mem), sluice_core::shard::Idle::Idle);
                    rig.offer(0);
                    rig.shard.handle_kick(rig.mem, rig.queue());
                } else {
                    rig.offer(0);
                }
                rig.turn();
                assert_eq!(rig.used(), [(0, 1)], "size {size}, turn {turn}");
            }
            assert_eq!(rig.broken, None);
        }
    }
}

//= spec/lifecycle.md#LIF-6
#[test]
fn b72_the_smallest_and_the_largest_ring() {
    // One entry: only an indirect chain fits.
    rig!(rig, Setup { size: 1, ..Setup::default() });
    rig.header(HEADER, IN, 0);
    rig.table(
        super::TABLE,
        &[(HEADER, 16, super::N, 1), (super::DATA, 512, W | super::N, 2), (STATUS, 1, W, 0)],
    );
    rig.desc(0, (super::TABLE, 48, super::I, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
    rig.desc(0, (HEADER, 16, super::N, 0));
    assert_eq!(rig.run(0), [(0, 0)], "it cannot be longer than itself");
    // Two entries do not hold three elements.
    rig!(rig, Setup { size: 2, ..Setup::default() });
    rig.desc(0, (HEADER, 16, super::N, 1));
    rig.desc(1, (super::DATA, 512, W | super::N, 2));
    assert_eq!(rig.run(0), [(0, 0)]);
    rig.header(HEADER, IN, 0);
    rig.desc(1, (super::DATA, 513, W, 0));
    assert_eq!(rig.run(0), [(0, 513)]);
    // The largest, with all of it in one chain.
    rig!(rig, Setup { size: QUEUE_SIZE_MAX, ..Setup::default() });
    rig.header(HEADER, IN, 0);
    let mut buffers = vec![(HEADER, 16, R)];
    buffers.extend([(0, 0, W); 1021]);
    buffers.extend([(super::DATA, 512, W), (STATUS, 1, W)]);
    assert_eq!(super::outcome(&mut rig, &buffers), (513, OK));
    // What is larger is refused before any of it is looked at.
    rig.input(sluice_core::shard::Input::FrontEndGone(rig.device));
    for event in [ControlEvent::SetOwner, ControlEvent::SetVringNum { index: 0, size: 32768 }] {
        let refused = matches!(event, ControlEvent::SetVringNum { .. });
        let reply = rig.control(event);
        assert_eq!(matches!(reply, Some(ControlReply::Refused(_))), refused);
    }
}
