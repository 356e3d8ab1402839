//! The core behind a C interface: one device on one image, in static memory.
//!
//! A small stack that has no vhost-user of its own can serve a virtio-blk device with these few
//! functions. They are also the proof that the core needs neither std nor an allocator: this
//! crate has its own panic handler and could not be built if either slipped in.
//!
//! All functions are to be called from one thread at a time.
#![no_std]

mod memory;
mod storage;
#[cfg(feature = "stub-logger")]
mod stub_logger;

use sluice_core::device::{ControlEvent, ControlReply, DeviceConfig, DeviceId, RegionList};
use sluice_core::device::{QueueId, RingAddresses};
use sluice_core::image::{Backing, ImageConfig};
use sluice_core::memory::Region;
use sluice_core::op::{Op, OpId, OpKind, Piece, Reply};
use sluice_core::shard::{Budget, Effect, Granted, Idle, Input, Shard};
use sluice_core::time::Instant;

use memory::{GUEST, Guest};
use storage::{Border, Storage};

struct State {
    shard: Shard<'static>,
    device: DeviceId,
    mem: Guest,
    reply: Option<ControlReply>,
    /// Whether a turn has begun whose operations are not all handed out.
    turn: bool,
}

static STORAGE: Border<Storage> = Border::new(Storage::EMPTY);
static STATE: Border<Option<State>> = Border::new(None);

/// An operation for the store. `kind`: 0 read, 1 write, 2 sync, 3 discard, 4 write zeroes,
/// 5 the same and give space back.
#[repr(C)]
#[derive(Debug)]
pub struct SluiceOp {
    /// For [`sluice_piece`] and [`sluice_reply`].
    pub id: u64,
    /// First byte of the image.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What to do.
    pub kind: u32,
}

/// A piece of an operation's payload, counted from the start of guest memory.
#[repr(C)]
#[derive(Debug)]
pub struct SluicePiece {
    /// First byte; all ones when the bytes are to be thrown away.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Brings the device in and shares `size` bytes of guest memory at `base`, guest address 0, with
/// it. 0 when it is done; it can be done once.
///
/// # Safety
/// `base` points to `size` bytes that stay mapped for good, and no Rust reference to them
/// exists. Not to be called while another function of this library runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sluice_init(base: *mut u8, size: usize, sectors: u64) -> i32 {
    // SAFETY: one function at a time, says the contract; the reference ends with this one.
    let state = unsafe { STATE.get() };
    if state.is_some() {
        return -1;
    }
    // SAFETY: taken once, because the state is set below and never again taken away.
    let storage = unsafe { STORAGE.get() };
    // SAFETY: passed on from this function's contract.
    let mem = unsafe { Guest::new(base, size) };
    let mut shard = Shard::new(storage.lend());
    let image = ImageConfig {
        backing: Backing::Store,
        capacity_sectors: sectors,
        block_bytes: 512,
        read_only: false,
        discard: true,
        write_zeroes: true,
        poisoned: false,
        in_turn: true,
    };
    let Some(image) = shard.add_image(image) else { return -1 };
    let config = DeviceConfig { image, serial: *b"sluice freestanding\0", queues: 1 };
    let Some(device) = shard.add_device(config) else { return -1 };
    *state = Some(State { shard, device, mem, reply: None, turn: false });
    0
}

/// Sends a control message. `kind`: 0 own, 1 features (a), 2 share memory, 3 ring size (a),
/// 4 ring base (a), 5 ring addresses (a, b, c), 6 start, 7 stop. The answer: 0 or the value;
/// -1 refused, -2 deferred to [`sluice_stopped`], -3 no such message or no device.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_control(kind: u32, a: u64, b: u64, c: u64) -> i64 {
    with(|state| {
        let index = 0;
        let small = u32::try_from(a).unwrap_or(u32::MAX);
        let event = match kind {
            0 => ControlEvent::SetOwner,
            1 => ControlEvent::SetFeatures(a),
            2 => {
                let size = state.mem.size();
                let all = Region { id: GUEST, guest: 0, user: 0, size };
                let mut regions = RegionList::new();
                let _ = regions.push(all);
                ControlEvent::SetMemTable(regions)
            }
            3 => ControlEvent::SetVringNum { index, size: small },
            4 => ControlEvent::SetVringBase { index, base: small },
            5 => {
                let addresses = RingAddresses { desc: a, avail: b, used: c };
                ControlEvent::SetVringAddr { index, addresses }
            }
            6 => ControlEvent::SetVringKick { index },
            7 => ControlEvent::GetVringBase { index },
            _ => return -3,
        };
        state.input(Input::Control(state.device, event));
        answer(state.reply.take())
    })
    .unwrap_or(-3)
}

/// The base of a queue that has stopped, once; -2 while it drains.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_stopped() -> i64 {
    with(|state| answer(state.reply.take())).unwrap_or(-3)
}

/// The driver has notified the queue.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_kick() {
    with(|state| {
        let queue = QueueId { device: state.device, index: 0 };
        state.shard.handle_kick(&state.mem, queue);
    });
}

/// The next operation, after taking chains from the ring when a turn begins; false when there is
/// none in this turn, which ends it: publish then, and poll again before you sleep.
///
/// # Safety
/// `op` points to room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sluice_poll(op: *mut SluiceOp) -> bool {
    let next = with(|state| {
        if !core::mem::replace(&mut state.turn, true) {
            state.shard.poll_queues(&state.mem, Budget::of_turn(1));
            state.take_effects();
        }
        let next = state.shard.poll_op();
        state.turn = next.is_some();
        next
    });
    let Some(next) = next.flatten() else { return false };
    // SAFETY: room for one, says the contract.
    unsafe { op.write(describe(&next)) };
    true
}

/// The `index`-th piece of an operation's payload; false behind the last.
///
/// # Safety
/// `piece` points to room for one, and `id` is of an operation without a reply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sluice_piece(id: u64, index: u32, piece: *mut SluicePiece) -> bool {
    let found = with(|state| state.shard.pieces(op_id(id)).nth(index as usize));
    let found = match found.flatten() {
        Some(Piece::Guest(part)) => SluicePiece { offset: part.offset, len: part.len.into() },
        Some(Piece::Skip(len)) => SluicePiece { offset: u64::MAX, len },
        None => return false,
    };
    // SAFETY: room for one, says the contract.
    unsafe { piece.write(found) };
    true
}

/// An operation has ended: the bytes moved, 0 if none were to be moved, or a negative error.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_reply(id: u64, result: i64) {
    with(|state| state.shard.handle_reply(&Reply { id: op_id(id), result, version: 0 }));
}

/// Gives finished chains back; true when the driver is to be notified.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_publish() -> bool {
    with(|state| {
        state.shard.publish(&state.mem);
        let notify = core::iter::from_fn(|| state.shard.poll_notify()).count() > 0;
        state.take_effects();
        notify
    })
    .unwrap_or(false)
}

/// Asks the driver to notify; true when it is safe to sleep until it does.
#[unsafe(no_mangle)]
pub extern "C" fn sluice_arm() -> bool {
    with(|state| state.shard.arm(&state.mem) == Idle::Idle).unwrap_or(true)
}

impl State {
    fn input(&mut self, input: Input) {
        // Only cluster updates can be refused this way, and there is no cluster.
        let _ = self.shard.handle(Instant(0), &self.mem, input);
        self.take_effects();
    }

    fn take_effects(&mut self) {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Reply(_, reply) => self.reply = Some(reply),
                // Nobody else is there who could hold the image.
                Effect::Capture(image) => {
                    let input = Input::Capture(image, Granted::Yes);
                    let _ = self.shard.handle(Instant(0), &self.mem, input);
                }
                _ => {}
            }
        }
    }
}

fn with<T>(run: impl FnOnce(&mut State) -> T) -> Option<T> {
    // SAFETY: one function at a time, says the library's contract; the reference ends with it.
    unsafe { STATE.get() }.as_mut().map(run)
}

fn answer(reply: Option<ControlReply>) -> i64 {
    match reply {
        Some(ControlReply::Done | ControlReply::Config(_)) => 0,
        Some(ControlReply::Value(value)) => i64::try_from(value).unwrap_or(i64::MAX),
        Some(ControlReply::VringBase { base, .. }) => base.into(),
        Some(ControlReply::Deferred) | None => -2,
        Some(ControlReply::Refused(_)) => -1,
    }
}

fn describe(op: &Op) -> SluiceOp {
    let kind = match op.kind {
        OpKind::Read => 0,
        OpKind::Write => 1,
        OpKind::Sync => 2,
        OpKind::Discard => 3,
        OpKind::WriteZeroes { unmap: false } => 4,
        OpKind::WriteZeroes { unmap: true } => 5,
    };
    let id = u64::from(op.id.index) | u64::from(op.id.generation) << 32;
    SluiceOp { id, offset: op.offset, len: op.len, kind }
}

#[expect(clippy::cast_possible_truncation, reason = "two halves")]
const fn op_id(id: u64) -> OpId {
    OpId { index: id as u32, generation: (id >> 32) as u32 }
}

/// A bug ends here. An embedder's watchdog does the rest.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
