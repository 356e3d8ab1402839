//! Every bound of the core, and the relations between them.
//!
//! Capacities that an embedder chooses (requests, parts, queues, devices) are the lengths of
//! the slices it lends in [`Storage`](crate::shard::Storage); what is here is fixed.

/// Bytes in a sector, the unit of every virtio-blk address (virtio 1.2, section 5.2.6).
pub const SECTOR_BYTES: u64 = 512;

/// Entries in the largest virtqueue that is accepted.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Queues that one device advertises; state is taken from the shard's pool on first use.
pub const QUEUES_PER_DEVICE_MAX: u16 = 128;

/// Data segments of one request that the device announces as `seg_max`.
pub const SEGMENTS_DATA_MAX: u16 = 126;

/// Segments kept for one chain: its data, header and status, and what splits at region borders.
pub const SEGMENTS_MAX: usize = 136;

/// Ranges in one discard or write-zeroes request.
pub const RANGES_MAX: usize = 16;

/// The same as the configuration space has it.
pub const RANGES_MAX_U32: u32 = 16;

/// Sectors in one range of a discard or write-zeroes request (1 GiB).
pub const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Memory regions that a front end may have in force at once.
pub const REGIONS_LIVE_MAX: usize = 32;

/// Memory regions of one device, the retired ones that requests still use included.
pub const REGIONS_MAX: usize = 64;

/// Bytes moved by one part where no object border cuts earlier.
///
/// Bounds the time that one operation keeps a synchronous store busy.
pub const PART_BYTES_MAX: u64 = 1 << 20;

/// Parts of one request that are under way at once; the cursor waits for the rest.
pub const PARTS_PER_REQUEST_MAX: u16 = 16;

/// Parts that ordinary requests leave free, so that internal work always finds one.
pub const PARTS_RESERVED: u32 = 1;

/// Chains taken from one queue before the next queue has its turn.
pub const QUEUE_BATCH: u16 = 32;

/// Chains that one turn takes at most, over all queues.
pub const TURN_CHAINS: u32 = 64;

/// What the operations of one turn cost at most, in bytes: a full batch of 4 KiB each.
pub const TURN_COST: u32 = QUEUE_BATCH as u32 * (OP_COST + 4096);

/// What handing an operation out costs beside the bytes that it moves, in bytes.
pub const OP_COST: u32 = 16 << 10;

/// What a device gets of a turn at least, however many share it: chains, and cost in bytes.
pub const CHAINS_SHARE_MIN: u32 = 4;
/// See [`CHAINS_SHARE_MIN`].
pub const TURN_SHARE_MIN: u32 = 32 << 10;

/// Bytes of a slice: what one operation moves at most inside a turn, or while several devices have
/// work.
pub const SLICE_BYTES: u64 = 128 << 10;

/// Bytes that one operation discards or zeroes at most inside a turn: to give a page back and to take
/// another costs several times its copy.
pub const CLEARED_BYTES: u64 = SLICE_BYTES / 4;

/// What devices of one shard have under way together while several have work, in bytes and
/// [`OP_COST`]s: each its share, and one slice at least.
pub const FLIGHT_BYTES: u64 = 4 * SLICE_BYTES;

/// The same for a device that is alone with its work, among others that have none.
pub const FLIGHT_ALONE_BYTES: u64 = 64 * SLICE_BYTES;

/// Turns after which a device whose neighbours ask for nothing counts as alone in the store: a
/// driver that thinks between two requests is not gone.
pub const LINGER_TURNS: u32 = 1 << 15;

/// Empty visits after which a polled queue is armed and only sampled.
pub const EMPTY_VISITS_MAX: u16 = 1024;

/// Pools of one cluster map.
pub const POOLS_MAX: usize = 16;

/// Events that the trace ring holds before it overwrites the oldest.
pub const TRACE_EVENTS: usize = 128;

// A chain of full length fits beside its header and status even when several of its segments
// cross a region border.
const _: () = assert!(SEGMENTS_MAX >= SEGMENTS_DATA_MAX as usize + 2);
// A free-running 16-bit index tells full from empty only up to half its range.
const _: () = assert!(QUEUE_SIZE_MAX.is_power_of_two() && QUEUE_SIZE_MAX <= 1 << 15);
// Region sets are one 64-bit word.
const _: () = assert!(REGIONS_MAX <= 64 && REGIONS_LIVE_MAX < REGIONS_MAX);
// The byte length of a range is computed in 64 bits from a 32-bit sector count.
const _: () = assert!((RANGE_SECTORS_MAX as u64) * SECTOR_BYTES <= 1 << 32);
const _: () = assert!(RANGES_MAX == RANGES_MAX_U32 as usize);
// A part length travels as 32 bits on the wire of a cluster.
const _: () = assert!(PART_BYTES_MAX <= u32::MAX as u64);
