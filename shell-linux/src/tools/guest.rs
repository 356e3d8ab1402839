//! What the tools that play a guest have in common: memory cut into queues and their data.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use sluice_core::blk::BlkFeatures;
use sluice_core::limits::QUEUE_SIZE_MAX;
use sluice_core::memory::Segment;
use sluice_core::virtqueue::layout::desc_table_bytes;
use sluice_sim::crash::{in_flight, in_flight_packed};
use sluice_sim::driver::Layout;

use crate::frontend::{Connection, GUEST, GuestMemory, InflightRegion, Queue, REGION, Wires};
use crate::image::Fault;
use crate::mapping::Mappings;

/// Bytes of memory for what is looked at before a guest begins.
pub(super) const SCRATCH_BYTES: u64 = 128 << 10;

/// What a guest is to have.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Queues to start.
    pub queues: u16,
    /// Requests in a queue at once.
    pub depth: u16,
    /// Descriptors of a request.
    pub descriptors: u16,
    /// Bytes of data for each request.
    pub data_bytes: u64,
    /// Entries of indirect tables; 0 for none.
    pub table_entries: u16,
    /// Whether what is under way is recorded, where the back end can.
    pub tracked: bool,
}

/// A guest with its queues running.
#[derive(Debug)]
pub struct Guest {
    /// To its back end.
    pub connection: Connection,
    /// Its rings and their data.
    pub memory: GuestMemory,
    inflight: Option<InflightRegion>,
    /// Its queues, in their order.
    pub queues: Vec<Queue>,
    wish: Wish,
    data: u64,
}

/// Connects to whoever serves a disk there, which may be starting just now.
//= spec/tools.md#TOOL-5
pub(super) fn connect(path: &Path, packed: bool) -> anyhow::Result<Connection> {
    let also = if packed { BlkFeatures::RING_PACKED } else { BlkFeatures::empty() };
    let give_up = Instant::now() + Duration::from_secs(2);
    loop {
        match Connection::open(path, also) {
            Ok(connection) => {
                let has = connection.features().contains(also);
                ensure!(has, Fault::Usage("the device has no packed rings".to_owned()));
                return Ok(connection);
            }
            Err(error) if Instant::now() > give_up => {
                let path = path.display();
                bail!(Fault::NotFound(format!("nobody serves a disk at {path}: {error:#}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Guest {
    /// Starts the queues. A wish for indirect tables is dropped where the device has none.
    ///
    /// # Errors
    /// When the device has not so many queues, a queue is too short for the wish, or the back end
    /// refuses something.
    pub fn start(connection: Connection, mut wish: Wish) -> anyhow::Result<Self> {
        let most = connection.queues_max();
        let queues = || Fault::Usage(format!("the device has {most} queues"));
        ensure!((1..=most).contains(&wish.queues), queues());
        ensure!(wish.depth > 0, Fault::Usage("a depth of at least 1 is needed".to_owned()));
        let entries = u32::from(wish.depth) * u32::from(wish.descriptors);
        let packed = connection.features().contains(BlkFeatures::RING_PACKED);
        let entries = if packed { entries } else { entries.next_power_of_two() };
        let size = u16::try_from(entries.max(128)).unwrap_or(u16::MAX);
        ensure!(
            size <= QUEUE_SIZE_MAX,
            Fault::Usage(format!(
                "{} requests of {} descriptors do not fit into a ring of {QUEUE_SIZE_MAX}",
                wish.depth, wish.descriptors,
            ))
        );
        if !connection.features().contains(BlkFeatures::INDIRECT_DESC) {
            wish.table_entries = 0;
        }
        let mut layouts = Vec::new();
        let mut end = 0;
        for _ in 0..wish.queues {
            let new = if packed { Layout::packed } else { Layout::new };
            let layout = new(REGION, GUEST, end, size, wish.table_entries);
            end = layout.end().next_multiple_of(4096);
            layouts.push(layout);
        }
        let data = end;
        let bytes = wish.data_bytes * u64::from(wish.depth) * u64::from(wish.queues);
        let memory = GuestMemory::new(data + bytes + SCRATCH_BYTES)?;
        let mem = memory.map()?;
        let inflight = match wish.tracked {
            true => connection.make_inflight(wish.queues, size)?,
            false => None,
        };
        if let Some(region) = &inflight {
            connection.share_inflight(region)?;
        }
        connection.share(&memory)?;
        let event_idx = connection.features().contains(BlkFeatures::EVENT_IDX);
        let mut queues = Vec::new();
        for (index, layout) in (0..).zip(layouts) {
            let queue = Queue::new(&mem, index, layout, event_idx)?;
            connection
                .start(&memory, queue.wires(), layout.base())
                .with_context(|| format!("starting queue {index}"))?;
            queues.push(queue);
        }
        Ok(Self { connection, memory, inflight, queues, wish, data })
    }

    /// Goes on with a back end that was reopened, in the order in which QEMU does: rings go on
    /// where a front end thinks they are, and what was taken is for the back end to find.
    ///
    /// # Errors
    /// When the back end refuses something.
    pub fn resume(
        &self,
        connection: &Connection,
        wires: &[Wires],
        mem: &Mappings,
    ) -> anyhow::Result<()> {
        if let Some(region) = &self.inflight {
            connection.share_inflight(region)?;
        }
        connection.share(&self.memory)?;
        for wires in wires {
            connection.start(&self.memory, wires, wires.known_base(mem)?)?;
        }
        Ok(())
    }

    /// What a dead back end has left under way, by the record of it, in the order in which it was
    /// taken. Nothing where that is not tracked.
    ///
    /// # Errors
    /// What is impossible about it.
    pub(super) fn left(&self, wires: &Wires, mem: &Mappings) -> anyhow::Result<Vec<u16>> {
        let Some(region) = &self.inflight else { return Ok(Vec::new()) };
        let layout = wires.layout();
        let area = region.area(wires.index(), layout.packed)?;
        let left = if layout.packed {
            let bytes = u32::try_from(desc_table_bytes(layout.size))?;
            let mut ring = vec![0; bytes as usize];
            let place = Segment::new(layout.region, layout.desc, bytes);
            mem.copy_out(place, &mut ring).ok().context("rings outside memory")?;
            in_flight_packed(&area, &ring)
        } else {
            in_flight(&area, u16::try_from(wires.known_base(mem)?)?)
        };
        left.map_err(|what| anyhow!(what))
    }

    /// Offset of the data of one request of a queue.
    #[must_use]
    pub fn data(&self, queue: u16, request: u16) -> u64 {
        let before = u64::from(queue) * u64::from(self.wish.depth) + u64::from(request);
        self.data + before * self.wish.data_bytes
    }

    /// Offset of [`SCRATCH_BYTES`] behind the data of all requests.
    pub(super) fn scratch(&self) -> u64 {
        self.data(self.wish.queues, 0)
    }

    /// Whether requests may be indirect.
    pub(super) const fn has_tables(&self) -> bool {
        self.wish.table_entries > 0
    }
}

/// How the disk under test is named on the command line.
#[derive(clap::Args, Debug)]
pub(super) struct Target {
    /// Socket of the disk: any vhost-user-blk back end.
    #[arg(long, value_name = "PATH")]
    pub(super) socket_path: PathBuf,

    /// Use packed rings.
    #[arg(long)]
    pub(super) packed: bool,

    /// Write without asking what is on the disk.
    #[arg(long)]
    pub(super) yes: bool,
}

/// Reads a length of time in seconds, with a fraction if need be.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
