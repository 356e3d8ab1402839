//! The parameters of the ring targets that concern memory.

use sluice_sim::memory::FlatMemory;
use sluice_sim::rig::{DATA_BYTES, HIGH, HIGH_GUEST, LOW, LOW_GUEST, RING, RING_BYTES, RING_GUEST};
use sluice_sim::watched::{Change, Watched};

use crate::bytes::Bytes;

/// Memory that stays as it is, changes at chosen moments, or never answers twice alike.
pub(crate) fn view<'m>(bytes: &mut Bytes<'_>, mem: &'m FlatMemory) -> Watched<'m> {
    match bytes.below(4) {
        0 | 1 => Watched::new(mem),
        2 => Watched::noisy(mem, bytes.u16().into()),
        _ => {
            let change = |bytes: &mut Bytes<'_>| Change {
                after: bytes.u8().into(),
                region: bytes.pick(&[RING, LOW, HIGH]),
                offset: u64::from(bytes.u16()) % 0x400,
                flips: bytes.u8(),
            };
            let changes = (0..=bytes.below(4)).map(|_| change(bytes)).collect();
            Watched::changing(mem, changes)
        }
    }
}

/// A guest address, most likely one with memory.
pub(crate) fn address(bytes: &mut Bytes<'_>) -> u64 {
    let (base, offset) = (bytes.below(8), u64::from(bytes.u16()));
    match base {
        0..=2 => LOW_GUEST + offset % 0x400,
        3 => LOW_GUEST + offset % DATA_BYTES,
        4 => HIGH_GUEST - offset % 0x400,
        5 => HIGH_GUEST + offset % (DATA_BYTES + 16),
        6 => RING_GUEST + offset % RING_BYTES,
        _ => (offset % 16).wrapping_sub(8),
    }
}

/// A length, most likely a small one.
pub(crate) fn length(bytes: &mut Bytes<'_>) -> u32 {
    match bytes.u8() {
        small @ 0..64 => small.into(),
        some @ 64..128 => 512 * u32::from(some - 63),
        128..192 => bytes.pick(&[1, 16, 17, 32, 48, 511, 512, 513, 1024, 4096]),
        192..240 => bytes.u16().into(),
        _ => bytes.u32(),
    }
}
