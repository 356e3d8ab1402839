//! What guests may write into rings, descriptors and request headers, one test per kind of
//! input. Each has a case that is refused and one, close to it, that has to be accepted.

mod indices;
mod chains;
mod changing;
mod polling;
mod requests;
mod ranges;
mod results;
mod holders;
mod messages;
mod overlays;
mod inflight;
mod misfits;
mod packed_inflight;
mod packed;
mod log;
mod differential;
mod exhaustive;

use sluice_core::virtqueue::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};

/// The device reads, the device writes, the buffer is a table, the chain goes on.
const R: u16 = 0;
const W: u16 = DESC_WRITE;
const I: u16 = DESC_INDIRECT;
const N: u16 = DESC_NEXT;

/// Header types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Status bytes, and the byte that stands there when none was written.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const NONE: u8 = 0xaa;

/// Where the tests put a header, data and a status byte, all in the lower region.
const HEADER: u64 = sluice_sim::rig::LOW_GUEST;
const STATUS: u64 = sluice_sim::rig::LOW_GUEST + 0x100;
const DATA: u64 = sluice_sim::rig::LOW_GUEST + 0x1000;
const TABLE: u64 = sluice_sim::rig::LOW_GUEST + 0x200;

/// Declares a rig, and the arena and memory that it borrows.
macro_rules! rig {
    ($rig:ident) => {
        rig!($rig, sluice_sim::rig::Setup::default());
    };
    ($rig:ident, $setup:expr) => {
        let (mut arena, mem) = (sluice_sim::rig::arena(64), sluice_sim::rig::memory());
        #[allow(unused_mut)]
        let mut $rig = sluice_sim::rig::Rig::new(&mut arena, &mem, $setup);
    };
}
use rig;

/// Clears the status byte, runs a chain of these buffers, and says (used length, status).
fn outcome(rig: &mut sluice_sim::rig::Rig<'_>, buffers: &[(u64, u32, u16)]) -> (u32, u8) {
    rig.put(STATUS, &[NONE]);
    let used = rig.chain(buffers);
    (used, rig.get(STATUS, 1)[0])
}
