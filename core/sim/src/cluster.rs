//! The store behind the devices: what operations do to images, sooner or later.
//!
//! One model for the embedded store and for a cluster's OSDs. An operation is sent, takes its
//! payload from the guest some time later, has its effect at one moment after that, and is
//! answered later still. Unsynced sectors remember what a power loss would leave of them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::image::{Backing, ImageConfig, ImageId};
use sluice_core::op::{Op, OpKind, Target};
use sluice_core::placement::{OsdNum, PgNum, PoolConfig};

use crate::prng::Prng;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Contents of a sector; `None` is all zeroes.
type Sector = Option<Box<[u8; SECTOR]>>;

/// `-EIO`, `-ENOSPC`.
const ERRORS: [i64; 2] = [-5, -28];

/// One image as it is stored.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What it is.
    pub config: ImageConfig,
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
    /// What a power loss would leave, of the sectors for which that is something else, and the
    /// number of the first effect that it would undo.
    durable: BTreeMap<u64, (u64, Sector)>,
    /// Unsynced sectors that no sync will save any more, because one has failed.
    lost: BTreeSet<u64>,
    /// Sectors that were ever written.
    touched: BTreeSet<u64>,
}

/// The whole store.
#[derive(Debug)]
pub struct Cluster {
    /// The images.
    pub disks: Vec<Disk>,
    /// The pool of the images that are not in the embedded store.
    pub pool: PoolConfig,
    /// Who serves each placement group, 1 first.
    pub primaries: Vec<Option<OsdNum>>,
    prng: Prng,
    /// Of 1000 operations, how many fail.
    pub errors: u64,
    /// Counts the operations that had their effect.
    pub effects: u64,
}

impl Cluster {
    /// A store of these images, all zeroes.
    #[must_use]
    pub fn new(prng: Prng, images: &[ImageConfig], pool: PoolConfig, errors: u64) -> Self {
        let disk = |&config| Disk {
            config,
            sectors: BTreeMap::new(),
            durable: BTreeMap::new(),
            lost: BTreeSet::new(),
            touched: BTreeSet::new(),
        };
        let primaries = vec![None; pool.pg_count as usize];
        Self { disks: images.iter().map(disk).collect(), pool, primaries, prng, errors, effects: 0 }
    }

    /// The image that an operation is about.
    ///
    /// # Errors
    /// When there is none: I10.
    pub fn image_of(&self, op: &Op) -> Result<u32, String> {
        let of_inode = |disk: &Disk| matches!(disk.config.backing, Backing::Cluster { inode, .. } if inode == op.inode);
        let found = match op.target {
            Target::Store(ImageId(index)) => Some(index as usize)
                .filter(|&index| index < self.disks.len())
                .filter(|&index| self.disks[index].config.backing == Backing::Store),
            Target::Osd(..) => self.disks.iter().position(of_inode),
        };
        let index = found.and_then(|index| u32::try_from(index).ok());
        index.ok_or_else(|| format!("{op:?} is about no image"))
    }

    /// Whether an operation may be sent as things stand.
    ///
    /// # Errors
    /// The invariant that it breaks, and how.
    pub fn check(&self, op: &Op) -> Result<u32, (&'static str, String)> {
        let image = self.image_of(op).map_err(|what| ("I10", what))?;
        let config = &self.disks[image as usize].config;
        let bytes = config.capacity_sectors * SECTOR as u64;
        if op.offset.checked_add(op.len).is_none_or(|end| end > bytes) {
            return Err(("I10", format!("{op:?} ends beyond {bytes}")));
        }
        let modifies = !matches!(op.kind, OpKind::Read | OpKind::Sync);
        if modifies && config.read_only {
            return Err(("I10", format!("{op:?} on a read-only image")));
        }
        if (op.kind == OpKind::Sync) != (op.len == 0) {
            return Err(("I11", format!("{op:?} has a strange length")));
        }
        let Target::Osd(_, osd) = op.target else { return Ok(image) };
        if op.kind == OpKind::Sync {
            return Ok(image);
        }
        let object = u64::from(self.pool.block_bytes) * u64::from(self.pool.data_chunks);
        if op.offset / object != (op.offset + op.len - 1) / object {
            return Err(("I11", format!("{op:?} crosses an object of {object}")));
        }
        if self.primaries[self.group_index(op.offset)] != Some(osd) {
            return Err(("I12", format!("{op:?} goes to one who is not primary")));
        }
        Ok(image)
    }

    /// The placement group of a byte, from 0: consecutive objects that fit a stripe together
    /// share one, and stripes take turns.
    fn group_index(&self, offset: u64) -> usize {
        let object = u64::from(self.pool.block_bytes) * u64::from(self.pool.data_chunks);
        let stripe = self.pool.pg_stripe_bytes.max(object);
        let first_of_object = offset - offset % object;
        usize::try_from(first_of_object / stripe % u64::from(self.pool.pg_count)).unwrap_or(0)
    }

    /// Carries an operation out: fills `payload` for a read, stores it for a write. Says what
    /// the reply says.
    pub fn apply(&mut self, op: &Op, image: u32, payload: &mut [u8]) -> i64 {
        self.effects += 1;
        let fails = self.prng.chance(self.errors);
        let first = op.offset / SECTOR as u64;
        let count = op.len / SECTOR as u64;
        // One that fails may have had its effect, a part of it, or none.
        let reach = if fails { self.prng.below(count + 1) } else { count };
        let moved = match op.kind {
            OpKind::Read => {
                let disk = &self.disks[image as usize];
                for (sector, into) in (first..first + reach).zip(payload.chunks_mut(SECTOR)) {
                    match disk.sectors.get(&sector) {
                        Some(bytes) => into.copy_from_slice(&bytes[..]),
                        None => into.fill(0),
                    }
                }
                op.len
            }
            OpKind::Write => {
                for (sector, from) in (first..first + reach).zip(payload.chunks(SECTOR)) {
                    let bytes: [u8; SECTOR] = from.try_into().expect("whole sectors");
                    self.put(image, sector, Some(Box::new(bytes)));
                }
                op.len
            }
            OpKind::Discard => {
                for sector in first..first + reach {
                    if self.prng.chance(500) {
                        self.put(image, sector, None);
                    }
                }
                0
            }
            OpKind::WriteZeroes { .. } => {
                (first..first + reach).for_each(|sector| self.put(image, sector, None));
                0
            }
            OpKind::Sync => {
                if !fails {
                    self.sync(image, op.target, false);
                }
                0
            }
        };
        match fails {
            false => i64::try_from(moved).unwrap_or(i64::MAX),
            // Fewer bytes than asked for are a failure too.
            true if moved > 0 && self.prng.chance(300) => i64::try_from(moved).unwrap_or(0) - 1,
            true => self.prng.pick(&ERRORS),
        }
    }

    /// A sync's failure is about to be told: what it should have saved cannot be saved any more.
    pub fn give_up(&mut self, op: &Op, image: u32) {
        self.sync(image, op.target, true);
    }

    fn put(&mut self, image: u32, sector: u64, value: Sector) {
        let disk = &mut self.disks[image as usize];
        let old = match value {
            Some(bytes) => disk.sectors.insert(sector, bytes),
            None => disk.sectors.remove(&sector),
        };
        disk.durable.entry(sector).or_insert((self.effects, old));
        disk.lost.remove(&sector);
        disk.touched.insert(sector);
    }

    /// Makes what one OSD holds of an image durable, or, in the store, all of it.
    fn sync(&mut self, image: u32, target: Target, fails: bool) {
        let disk = &self.disks[image as usize];
        let held = |sector: &u64| match target {
            Target::Store(_) => true,
            Target::Osd(_, osd) => self.primaries[self.group_index(sector * 512)] == Some(osd),
        };
        let unsynced: Vec<u64> = disk.durable.keys().copied().filter(held).collect();
        let disk = &mut self.disks[image as usize];
        for sector in unsynced {
            if fails {
                disk.lost.insert(sector);
            } else if !disk.lost.contains(&sector) {
                disk.durable.remove(&sector);
            }
        }
    }

    /// Gives a placement group another primary. Whoever hands a group over or takes it up makes
    /// its contents durable first.
    pub fn move_group(&mut self, pg: PgNum, osd: Option<OsdNum>) {
        let index = pg.0 as usize - 1;
        self.primaries[index] = osd;
        for image in 0..self.disks.len() {
            if self.disks[image].config.backing == Backing::Store {
                continue;
            }
            let moved = |sector: &u64| self.group_index(sector * 512) == index;
            let unsynced: Vec<u64> =
                self.disks[image].durable.keys().copied().filter(moved).collect();
            let disk = &mut self.disks[image];
            for sector in unsynced {
                if !disk.lost.contains(&sector) {
                    disk.durable.remove(&sector);
                }
            }
        }
    }

    /// The power fails everywhere: of every unsynced sector the old or the new contents stay.
    pub fn lose_power(&mut self) {
        for disk in &mut self.disks {
            for (sector, (_, old)) in core::mem::take(&mut disk.durable) {
                if self.prng.chance(300) {
                    continue;
                }
                match old {
                    Some(bytes) => disk.sectors.insert(sector, bytes),
                    None => disk.sectors.remove(&sector),
                };
            }
            disk.lost.clear();
        }
    }

    /// The sectors that a power loss would change, and since when.
    pub fn dirty(&self, image: u32) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.disks[image as usize].durable.iter().map(|(&sector, &(since, _))| (sector, since))
    }

    /// Since when a power loss would change a sector.
    #[must_use]
    pub fn dirty_since(&self, image: u32, sector: u64) -> Option<u64> {
        self.disks[image as usize].durable.get(&sector).map(|&(since, _)| since)
    }

    /// The sectors that hold something, or have held it.
    #[must_use]
    pub fn touched(&self, image: u32) -> Vec<u64> {
        self.disks[image as usize].touched.iter().copied().collect()
    }

    /// What a sector holds.
    #[must_use]
    pub fn sector(&self, image: u32, sector: u64) -> [u8; SECTOR] {
        let found = self.disks[image as usize].sectors.get(&sector);
        found.map_or([0; SECTOR], |bytes| **bytes)
    }
}
