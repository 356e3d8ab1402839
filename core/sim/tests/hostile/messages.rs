//! Messages whose numbers reach ring arithmetic.

use sluice_core::device::{ControlEvent, ControlFault, ControlReply};
use sluice_core::memory::RegionId;
use sluice_core::shard::Input;
use sluice_sim::rig::{HIGH, Setup};

use super::rig;

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
