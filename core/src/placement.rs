//! From an object to the OSD that serves it: the placement groups of a cluster.

use crate::image::{Cut, Geometry};
use crate::limits::{PART_BYTES_MAX, POOLS_MAX};

/// A cluster that the daemon is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ClusterId(pub u16);

/// A pool of a cluster; 0 is not a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PoolId(pub u16);

/// A placement group's number inside its pool, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PgNum(pub u32);

/// An OSD's number; 0 is not an OSD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OsdNum(pub u32);

/// The version of a cluster's map; it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Epoch(pub u64);

/// What a pool is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PoolConfig {
    /// Its number.
    pub id: PoolId,
    /// Bytes in a block: a power of two from 4 KiB to 128 MiB.
    pub block_bytes: u32,
    /// Data chunks in an object: 1 for replicated pools.
    pub data_chunks: u32,
    /// Bytes of consecutive objects that share a PG; less than an object counts as one object.
    pub pg_stripe_bytes: u64,
    /// Placement groups.
    pub pg_count: u32,
}

impl PoolConfig {
    /// Bytes in an object.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        self.block_bytes as u64 * self.data_chunks as u64
    }

    /// How images of this pool are cut.
    #[must_use]
    pub const fn cut(&self) -> Cut {
        let geometry = Geometry::Objects(self.object_bytes());
        Cut { geometry, moved: PART_BYTES_MAX, cleared: u64::MAX }
    }

    /// The placement group of the object that holds this byte.
    ///
    /// It is the start of the object, not the offset, that is divided by the stripe, and the
    /// image's number does not enter.
    //= spec/placement.md#PLC-3
    #[must_use]
    pub fn pg(&self, offset: u64) -> PgNum {
        let object = self.object_bytes();
        let start = offset / object * object;
        let stripe = start / self.pg_stripe_bytes.max(object);
        let index = stripe % u64::from(self.pg_count);
        PgNum(u32::try_from(index).map_or(1, |index| index + 1))
    }

    //= spec/placement.md#PLC-5
    fn check(&self) -> Result<(), MapError> {
        let block = 4096..=128 << 20;
        let sound = block.contains(&self.block_bytes)
            && self.block_bytes.is_power_of_two()
            && (1..=256).contains(&self.data_chunks)
            && self.pg_count > 0
            && self.id.0 != 0;
        if sound { Ok(()) } else { Err(MapError::BadPool) }
    }
}

/// Why an update of the map was refused; the map is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum MapError {
    /// A pool's numbers make no sense.
    BadPool,
    /// More pools, or more placement groups in one, than there is room for.
    Full,
    /// A placement group or pool that the map does not have.
    Unknown,
    /// Older than what is known.
    Stale,
}

/// A change of a cluster's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Update {
    /// A pool as it is now. Its placement groups have no primaries until told.
    Pool(PoolConfig),
    /// Who serves a placement group now.
    Primary {
        /// In this pool.
        pool: PoolId,
        /// This group.
        pg: PgNum,
        /// `None` while nobody does.
        osd: Option<OsdNum>,
    },
}

/// A cluster's pools and primaries, with the epoch they are from.
#[derive(Debug)]
pub struct PgMap<'s> {
    epoch: Epoch,
    pools: heapless::Vec<PoolConfig, POOLS_MAX>,
    /// One run of equal length for each pool.
    primaries: &'s mut [Option<OsdNum>],
}

impl<'s> PgMap<'s> {
    /// An empty map; each of the pools has room for `1 / POOLS_MAX` of the lent primaries.
    #[must_use]
    pub fn new(primaries: &'s mut [Option<OsdNum>]) -> Self {
        primaries.fill(None);
        Self { epoch: Epoch(0), pools: heapless::Vec::new(), primaries }
    }

    /// The version of what is known.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes over a change made at `epoch`.
    ///
    /// # Errors
    /// [`MapError`]; the map never goes back.
    //= spec/placement.md#PLC-4
    pub fn update(&mut self, epoch: Epoch, update: Update) -> Result<(), MapError> {
        if epoch < self.epoch {
            return Err(MapError::Stale);
        }
        match update {
            Update::Pool(config) => {
                config.check()?;
                if config.pg_count as usize > self.run() {
                    return Err(MapError::Full);
                }
                let index = match self.index_of(config.id) {
                    Some(index) => index,
                    None => {
                        self.pools.push(config).map_err(|_| MapError::Full)?;
                        self.pools.len() - 1
                    }
                };
                self.pools[index] = config;
                let start = index * self.run();
                let end = start + self.run();
                self.primaries[start..end].fill(None);
            }
            Update::Primary { pool, pg, osd } => {
                let place = self.place(pool, pg).ok_or(MapError::Unknown)?;
                self.primaries[place] = osd;
            }
        }
        self.epoch = epoch;
        Ok(())
    }

    /// A pool's configuration.
    #[must_use]
    pub fn pool(&self, id: PoolId) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.id == id)
    }

    /// Who serves a placement group; `None` while nobody does, or when there is no such group.
    #[must_use]
    pub fn primary(&self, pool: PoolId, pg: PgNum) -> Option<OsdNum> {
        self.primaries[self.place(pool, pg)?]
    }

    fn run(&self) -> usize {
        self.primaries.len() / POOLS_MAX
    }

    fn index_of(&self, pool: PoolId) -> Option<usize> {
        self.pools.iter().position(|config| config.id == pool)
    }

    fn place(&self, pool: PoolId, pg: PgNum) -> Option<usize> {
        let index = self.index_of(pool)?;
        let group = pg.0.checked_sub(1)?;
        (group < self.pools[index].pg_count).then(|| index * self.run() + group as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolConfig = PoolConfig {
        id: PoolId(1),
        block_bytes: 128 << 10,
        data_chunks: 1,
        pg_stripe_bytes: 0,
        pg_count: 4,
    };

    //= spec/placement.md#PLC-3
    #[test]
    fn groups_follow_the_start_of_the_object() {
        let pgs = |pool: PoolConfig, offsets: &[u64]| -> std::vec::Vec<u32> {
            offsets.iter().map(|&offset| pool.pg(offset).0).collect()
        };
        let block = 128 << 10;
        assert_eq!(pgs(POOL, &[0, block - 1, block, 4 * block]), [1, 1, 2, 1]);
        // Erasure coded: objects of three blocks.
        let ec = PoolConfig { data_chunks: 3, ..POOL };
        assert_eq!(pgs(ec, &[0, 3 * block - 1, 3 * block, 12 * block]), [1, 1, 2, 1]);
        // A stripe of four objects, and one that is no multiple of an object.
        let wide = PoolConfig { pg_stripe_bytes: 4 * block, ..POOL };
        assert_eq!(pgs(wide, &[0, 4 * block - 1, 4 * block, 16 * block]), [1, 1, 2, 1]);
        let odd = PoolConfig { pg_stripe_bytes: block + block / 2, ..POOL };
        assert_eq!(pgs(odd, &[block, 2 * block, 3 * block - 1]), [1, 2, 2]);
    }

    //= spec/placement.md#PLC-4
    #[test]
    fn the_map_never_goes_back() {
        let mut primaries = [None; POOLS_MAX * 4];
        let mut map = PgMap::new(&mut primaries);
        map.update(Epoch(5), Update::Pool(POOL)).unwrap();
        let primary = |osd| Update::Primary { pool: PoolId(1), pg: PgNum(4), osd };
        map.update(Epoch(6), primary(Some(OsdNum(3)))).unwrap();
        assert_eq!(map.update(Epoch(5), primary(None)), Err(MapError::Stale));
        assert_eq!(map.primary(PoolId(1), PgNum(4)), Some(OsdNum(3)));
        assert_eq!(map.primary(PoolId(1), PgNum(0)), None);
        assert_eq!(map.primary(PoolId(1), PgNum(5)), None);
        assert_eq!(map.primary(PoolId(2), PgNum(1)), None);
        assert_eq!(map.epoch(), Epoch(6));
        let full = PoolConfig { id: PoolId(2), pg_count: 5, ..POOL };
        assert_eq!(map.update(Epoch(7), Update::Pool(full)), Err(MapError::Full));
    }

    //= spec/placement.md#PLC-5
    #[test]
    fn b105_pools_that_make_no_sense_are_refused() {
        let mut primaries = [None; POOLS_MAX * 4];
        let mut map = PgMap::new(&mut primaries);
        for bad in [
            PoolConfig { block_bytes: 0, ..POOL },
            PoolConfig { block_bytes: 5000, ..POOL },
            PoolConfig { data_chunks: 0, ..POOL },
            PoolConfig { pg_count: 0, ..POOL },
            PoolConfig { id: PoolId(0), ..POOL },
        ] {
            assert_eq!(map.update(Epoch(1), Update::Pool(bad)), Err(MapError::BadPool));
        }
        assert_eq!(map.update(Epoch(1), Update::Pool(POOL)), Ok(()));
    }
}
