//! Parts of a ring, buffers and the inflight region on top of each other.

use sluice_core::device::{ControlEvent as E, ControlReply, RingAddresses};
use sluice_core::inflight::region_bytes;
use sluice_core::shard::Input;
use sluice_sim::prng::Prng;
use sluice_sim::rig::{HIGH, HIGH_GUEST, RING, Rig};

use super::{DATA, HEADER, IN, OK, R, STATUS, W, outcome, rig};

/// A read in the right places, over another connection.
fn is_served_anew(rig: &mut Rig<'_>) {
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach();
    assert_eq!(rig.broken, None);
    rig.header(HEADER, IN, 3);
    let read = [(HEADER, 16, R), (DATA, 512, W), (STATUS, 1, W)];
    assert_eq!(outcome(rig, &read), (513, OK));
}

/// What becomes of it is the guest's own affair; the rig holds every operation to the image and
/// to the memory.
#[test]
fn b45_a_ring_whose_parts_lie_on_each_other() {
    rig!(rig);
    let good = rig.addresses();
    let RingAddresses { desc, avail, used } = good;
    let mut prng = Prng::new(45);
    for addresses in [
        RingAddresses { desc, avail: desc, used: desc },
        RingAddresses { desc, avail: used, used },
        RingAddresses { desc, avail, used: avail },
        RingAddresses { desc, avail: desc + 2, used: desc + 4 },
        RingAddresses { desc, avail: used + 2, used },
        RingAddresses { desc: used & !15, avail, used },
    ] {
        for round in 0..50 {
            rig.control(E::GetVringBase { index: 0 });
            let sparse = |_| u8::try_from(prng.below(4).saturating_sub(2)).unwrap_or(0);
            let bytes: Vec<u8> = (0..1024).map(sparse).collect();
            rig.mem.fill(RING, 0, &bytes);
            for event in [
                E::SetVringNum { index: 0, size: rig.size().into() },
                E::SetVringBase { index: 0, base: 0 },
                E::SetVringAddr { index: 0, addresses },
                E::SetVringKick { index: 0 },
                E::SetVringEnable { index: 0, enable: true },
            ] {
                assert_eq!(rig.control(event), Some(ControlReply::Done), "{round}");
            }
            (0..4).for_each(|_| rig.turn());
            rig.effects.clear();
        }
    }
    is_served_anew(&mut rig);
}

/// Data lands on the records of what is under way, and a ring lies there.
#[test]
fn b45_an_inflight_region_in_guest_memory() {
    rig!(rig);
    let len = region_bytes(1, 16, false);
    let area = |region| E::SetInflight { region, offset: 0, len, queues: 1, size: 16 };
    rig.mem.fill(HIGH, 0, &[0; 512]);
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(&[area(HIGH)]);
    rig.header(HEADER, IN, 3);
    let onto = [(HEADER, 16, R), (HIGH_GUEST, 512, W), (STATUS, 1, W)];
    for _ in 0..3 {
        assert_eq!(outcome(&mut rig, &onto), (513, OK));
    }
    // Whatever stands there now, the next start judges it.
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(&[area(HIGH)]);
    rig.turn();
    rig.input(Input::FrontEndGone(rig.device));
    rig.attach_with(&[area(RING)]);
    rig.turn();
    is_served_anew(&mut rig);
}
