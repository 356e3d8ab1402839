//! What a front end says to bring a device up, as control events.

use sluice_core::blk::BlkFeatures;
use sluice_core::device::{
    ControlEvent, ControlReply, DeviceId, ProtocolFeatures, RegionList, RingAddresses,
};
use sluice_core::memory::{Region, SharedMemory};
use sluice_core::shard::{Effect, Input, Shard};
use sluice_core::time::Instant;

use crate::driver::Layout;

/// What every front end of ours negotiates.
#[must_use]
pub fn features(event_idx: bool) -> BlkFeatures {
    let mut features = BlkFeatures::VERSION_1
        | BlkFeatures::PROTOCOL_FEATURES
        | BlkFeatures::INDIRECT_DESC
        | BlkFeatures::SEG_MAX
        | BlkFeatures::BLK_SIZE
        | BlkFeatures::FLUSH
        | BlkFeatures::MQ
        | BlkFeatures::DISCARD
        | BlkFeatures::WRITE_ZEROES;
    features.set(BlkFeatures::EVENT_IDX, event_idx);
    features
}

/// Sends one message and takes its answer; other effects meanwhile are dropped.
///
/// # Panics
/// When there is no answer.
pub fn ask(
    shard: &mut Shard<'_>,
    mem: &impl SharedMemory,
    device: DeviceId,
    event: ControlEvent,
) -> ControlReply {
    let asked = Input::Control(device, event);
    shard.handle(Instant(0), mem, asked).expect("no cluster update");
    let mut answer = None;
    while let Some(effect) = shard.poll_effect() {
        if let Effect::Reply(_, reply) = effect {
            answer = Some(reply);
        }
    }
    answer.expect("each message is answered")
}

/// The messages up to and including the memory table.
pub fn connect(
    features: BlkFeatures,
    regions: &[Region],
) -> impl Iterator<Item = ControlEvent> + use<> {
    let table = ControlEvent::SetMemTable(regions.iter().copied().collect::<RegionList>());
    [
        ControlEvent::GetFeatures,
        ControlEvent::SetProtocolFeatures(ProtocolFeatures::all().bits()),
        ControlEvent::SetOwner,
        ControlEvent::SetFeatures(features.bits()),
        table,
    ]
    .into_iter()
}

/// The messages that start one queue whose rings lie in `region`.
pub fn start_queue(
    index: u32,
    layout: &Layout,
    region: &Region,
    base: u32,
) -> impl Iterator<Item = ControlEvent> + use<> {
    let rings = layout.rings();
    let addresses = RingAddresses {
        desc: region.user + rings.desc.1,
        avail: region.user + rings.avail.1,
        used: region.user + rings.used.1,
    };
    [
        ControlEvent::SetVringNum { index, size: layout.size.into() },
        ControlEvent::SetVringBase { index, base },
        ControlEvent::SetVringAddr { index, addresses },
        ControlEvent::SetVringKick { index },
        ControlEvent::SetVringCall { index },
        ControlEvent::SetVringEnable { index, enable: true },
    ]
    .into_iter()
}
