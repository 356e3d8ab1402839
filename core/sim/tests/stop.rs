//! A queue that is stopped.

use sluice_core::device::{ControlEvent, ControlReply};
use sluice_sim::rig::{LOW_GUEST, Rig, Setup, arena, memory};

const WRITE: u16 = 2;

//= spec/lifecycle.md#LIF-14
#[test]
fn the_last_batch_before_a_stop_is_notified() {
    for stop_before_the_reply in [false, true] {
        let (mut arena, mem) = (arena(4), memory());
        let mut rig = Rig::new(&mut arena, &mem, Setup::default());
        rig.header(LOW_GUEST, 0, 0);
        rig.link(&[
            (LOW_GUEST, 16, 0),
            (LOW_GUEST + 0x1000, 512, WRITE),
            (LOW_GUEST + 0x2000, 1, WRITE),
        ]);
        rig.offer(0);
        rig.take_in(&mem);
        let stop = ControlEvent::GetVringBase { index: 0 };
        if stop_before_the_reply {
            assert_eq!(rig.control(stop.clone()), Some(ControlReply::Deferred));
            rig.work();
        } else {
            rig.work();
            assert_eq!(rig.control(stop), Some(ControlReply::Deferred));
        }
        let before = rig.notified;
        rig.give_back(&mem);
        assert_eq!(rig.used(), [(0, 513)]);
        assert_eq!(rig.notified, before + 1, "the driver waits for it");
    }
}
