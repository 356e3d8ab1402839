//! Messages whose numbers reach ring arithmetic.

use sluice_core::device::{ControlEvent, ControlFault, ControlReply, ProtocolFeatures};
use sluice_core::inflight::region_bytes;
use sluice_core::shard::Input;
use sluice_core::virtqueue::QueueFault;
use sluice_sim::rig::{HIGH, Setup};

use super::{DATA, HEADER, IN, STATUS, W, rig};

/// Bytes of the upper region.
const DATA_BYTES: usize = 0x4000;

const fn area(offset: u64, len: u64, queues: u16, size: u16) -> ControlEvent {
    ControlEvent::SetInflight { region: HIGH, offset, len, queues, size }
}

/// All numbers come from the front end; the shell maps what it can and passes them on. None of
/// them is a reason to serve nothing.
//= spec/inflight.md#INF-2
#[test]
fn b87_b88_an_inflight_region_of_any_shape_is_taken() {
    rig!(rig, Setup::default());
    let refused = Some(ControlReply::Refused(ControlFault::Inflight));
    let bytes = region_bytes(2, 16, false);
    let fits = area(0, bytes, 2, 16);
    assert_eq!(rig.control(fits.clone()), refused, "a queue runs");
    for (queues, size) in [(0, 16), (3, 16), (u16::MAX, 16), (2, 0), (2, 1025), (2, u16::MAX)] {
        rig!(rig, Setup::default());
        for len in [0, bytes - 1, bytes, u64::MAX] {
            for offset in [u64::MAX, u64::MAX - 63, 1 << 63, bytes, 64, 8, 4, 1, 0] {
                rig.input(Input::FrontEndGone(rig.device));
                rig.mem.fill(HIGH, 0, &[0; DATA_BYTES]);
                rig.attach_with(&[area(offset, len, queues, size)]);
                let lost = matches!(rig.broken, None | Some(QueueFault::RingUnmapped));
                assert!(lost, "{offset} {len}: {:?}", rig.broken);
            }
        }
    }
    rig.control(ControlEvent::GetVringBase { index: 0 });
    for event in [fits, area(0x40, bytes + 0x40, 2, 16), area(0, bytes, 1, 1)] {
        assert_eq!(rig.control(event), Some(ControlReply::Done));
    }
}

//= spec/inflight.md#INF-1
#[test]
fn b18_an_inflight_region_that_was_not_negotiated_is_refused() {
    rig!(rig, Setup::default());
    rig.control(ControlEvent::GetVringBase { index: 0 });
    let refused = Some(ControlReply::Refused(ControlFault::Inflight));
    let done = Some(ControlReply::Done);
    let ask = ControlEvent::GetInflight { queues: 1, size: 16 };
    let inflight = ProtocolFeatures::INFLIGHT_SHMFD;
    let without = ProtocolFeatures::CONFIG.bits();
    assert_eq!(rig.control(ControlEvent::SetProtocolFeatures(without)), done);
    assert_eq!(rig.control(ask.clone()), refused);
    assert_eq!(rig.control(area(0, region_bytes(1, 16, false), 1, 16)), refused);
    assert_eq!(rig.control(ControlEvent::SetProtocolFeatures(inflight.bits())), done);
    assert!(matches!(rig.control(ask), Some(ControlReply::Value(1..))));
    assert_eq!(rig.control(area(0, region_bytes(1, 16, false), 1, 16)), done);
}

/// A mapping that lost its end after it was measured breaks the queue, and nothing is stored.
#[test]
fn b88_an_inflight_region_that_ends_early() {
    rig!(rig, Setup::default());
    rig.mem.fill(HIGH, 0, &[0; DATA_BYTES]);
    for left in [8, 16, 24, 264] {
        rig.input(Input::FrontEndGone(rig.device));
        rig.attach_with(&[area(DATA_BYTES as u64 - left, u64::MAX, 1, 16)]);
        assert_eq!(rig.broken, Some(QueueFault::RingUnmapped), "{left}");
        assert_eq!(rig.mem.dump(HIGH, 0, DATA_BYTES), [0; DATA_BYTES]);
    }
    // One that ends behind the last record is large enough.
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(&[area(DATA_BYTES as u64 - 272, u64::MAX, 1, 16)]);
    rig.header(HEADER, IN, 0);
    rig.link(&[(HEADER, 16, 0), (DATA, 512, W), (STATUS, 1, W)]);
    assert_eq!((rig.run(0), rig.broken), (vec![(0, 513)], None));
}
