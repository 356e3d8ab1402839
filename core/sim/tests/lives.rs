//! Lives of more requests than 16 bits can count.

use sluice_sim::lives::live_long;

/// The numbers of chains cross 65,536, and the ring's indices do so at the same moment, or in the
/// middle of what is left, or somewhere else.
//= spec/inflight.md#INF-4
//= spec/recovery.md#REC-6
#[test]
fn what_is_left_of_a_long_life_is_taken_again_in_its_order() {
    for base in [0, 0x8003] {
        live_long(false, base).unwrap();
    }
}

//= spec/inflight.md#INF-10
//= spec/recovery.md#REC-6
#[test]
fn what_is_left_of_a_long_life_is_taken_again_in_its_order_packed() {
    for base in [0x8000, 7] {
        live_long(true, base).unwrap();
    }
}
