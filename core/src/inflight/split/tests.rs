use super::*;
use crate::memory::flat::Flat;

const AREA: RegionId = RegionId(0);
const SIZE: u16 = 8;

/// A life may be as long as it likes: numbers go on through every width that they could be cut to.
//= spec/inflight.md#INF-4
//= spec/recovery.md#REC-6
#[test]
fn chains_are_taken_again_in_their_order_however_many_came_before() {
    let heads = [5, 2, 7, 0];
    for width in [8, 15, 16, 24, 31, 32, 48, 53, 63] {
        // Two before the number that needs one bit more, and two from it on.
        let counter = (1 << width) - 2;
        let mem = Flat::new(&[usize::try_from(bytes(SIZE)).unwrap()]);
        let mut area = SplitInflight { region: AREA, offset: 0, counter, batch_head: 0 };
        area.open(&mem, SIZE, 0).unwrap();
        heads.iter().for_each(|&head| area.mark(&mem, ChainToken(head)).unwrap());
        let ring = RingState { size: SIZE, avail_idx: 4, used_idx: 0, base: 0 };
        let (_, mut again) = resume(&mem, AREA, 0, ring).unwrap();
        again.reverse();
        assert!(again.iter().map(|&head| u32::from(head)).eq(heads), "{width} bits: {again:?}");
    }
}
