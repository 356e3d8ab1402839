//! Messages whose numbers reach ring arithmetic.

use sluice_core::device::{ControlEvent, ControlFault, ControlReply};
use sluice_core::memory::RegionId;
use sluice_core::shard::Input;
use sluice_core::virtqueue::QueueFault;
use sluice_sim::rig::{HIGH, Setup};

use super::{DATA, HEADER, IN, N, STATUS, W, rig};

/// Bytes of the upper region.
const DATA_BYTES: usize = 0x4000;

/// The offset comes from the front end; the shell maps what it can and passes the number on.
#[test]
fn b87_an_inflight_offset_at_the_end_of_numbers_is_refused() {
    rig!(rig, Setup::default());
    let addresses = rig.addresses();
    rig.mem.fill(HIGH, 0, &[0; 0x400]);
    for (offset, expected) in [
        (u64::MAX, ControlReply::Refused(ControlFault::Inflight)),
        (u64::MAX - 63, ControlReply::Refused(ControlFault::Inflight)),
        (1 << 63, ControlReply::Refused(ControlFault::Inflight)),
        (0x40, ControlReply::Done),
    ] {
        rig.input(Input::FrontEndGone(rig.device));
        rig.attach();
        let size = 16;
        for index in 0..2 {
            // The first queue runs already; the second shares its rings, which is its own fault.
            rig.control(ControlEvent::GetVringBase { index });
        }
        let region = RegionId(HIGH.0);
        let area = ControlEvent::SetInflight { region, offset, queues: 2, size };
        assert_eq!(rig.control(area), Some(ControlReply::Done));
        let index = 1;
        for event in [
            ControlEvent::SetVringNum { index, size: size.into() },
            ControlEvent::SetVringAddr { index, addresses },
        ] {
            assert_eq!(rig.control(event), Some(ControlReply::Done));
        }
        let reply = rig.control(ControlEvent::SetVringKick { index });
        assert_eq!(reply, Some(expected), "{offset:x}");
    }
}

/// A region that ends among a queue's records breaks the queue at the first record outside.
/// What was taken before it still ends.
#[test]
fn b88_an_inflight_region_that_is_too_small() {
    rig!(rig, Setup::default());
    rig.mem.fill(HIGH, 0, &[0; DATA_BYTES]);
    rig.input(Input::FrontEndGone(rig.device));
    let area = ControlEvent::SetInflight {
        region: HIGH,
        // The header and three records.
        offset: DATA_BYTES as u64 - 64,
        queues: 1,
        size: 16,
    };
    rig.attach_with(&[area]);
    rig.header(HEADER, IN, 0);
    for head in [0, 3, 6] {
        rig.desc(head, (HEADER, 16, N, head + 1));
        rig.desc(head + 1, (DATA, 512, W | N, head + 2));
        rig.desc(head + 2, (STATUS, 1, W, 0));
        rig.offer(head);
    }
    rig.take_in(rig.mem);
    assert_eq!(rig.broken, Some(QueueFault::RingUnmapped));
    let ops = rig.ops();
    assert_eq!((ops.len(), rig.shard.live()), (1, 1));
    rig.reply_ok(&ops[0]);
    rig.give_back(rig.mem);
    assert_eq!(rig.used(), [(0, 513)]);
    rig.input(Input::FrontEndGone(rig.device));
    rig.give_back(rig.mem);
    assert_eq!(rig.shard.live(), 0);
    // One that ends behind the last record is large enough.
    let area = ControlEvent::SetInflight {
        region: HIGH,
        offset: DATA_BYTES as u64 - 64 - 256,
        queues: 1,
        size: 16,
    };
    rig.attach_with(&[area]);
    assert_eq!(rig.run(0), [(0, 513)]);
    assert_eq!((rig.run(6), rig.broken), (vec![(6, 513)], None));
}
