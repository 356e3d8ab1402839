//! Whether a flush that succeeded has saved what it had to (I02), without waiting for a power
//! loss to show it.
//!
//! Every effect on the store has a number. A sector is dirty since the first effect that a
//! power loss would undo; an acknowledged write whose effect came after that is not durable.

use std::collections::BTreeMap;

use crate::bus::parts::ChainName;

/// The effect of an acknowledged write on a sector.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    effect: u64,
    /// When it was acknowledged.
    at: u64,
}

/// Acknowledged writes that no sync has covered yet.
#[derive(Debug, Default)]
pub struct Durable {
    /// Effects of requests that have not come back: first sector, sectors, effect.
    pending: BTreeMap<ChainName, Vec<(u64, u64, u64)>>,
    /// Writes that have to be stable when they come back, and what their driver had chosen then.
    through: BTreeMap<ChainName, u64>,
    /// By image and sector, the oldest acknowledged write that may be dirty.
    acknowledged: BTreeMap<(u32, u64), Acknowledged>,
    now: u64,
}

impl Durable {
    /// A part of a request had its effect.
    pub fn applied(&mut self, name: ChainName, first: u64, sectors: u64, effect: u64) {
        self.pending.entry(name).or_default().push((first, sectors, effect));
    }

    /// A write was sent while completed ones have to be stable, by the `era`-th choice.
    pub fn sent_through(&mut self, name: ChainName, era: u64) {
        self.through.insert(name, era);
    }

    /// A request will never come back.
    pub fn forget(&mut self, name: ChainName) {
        self.pending.remove(&name);
        self.through.remove(&name);
    }

    /// A request is about to come back, by the `era`-th choice. Says which sector a power loss
    /// would change although it has to be stable.
    pub fn unstable(
        &mut self,
        name: ChainName,
        era: u64,
        dirty_since: impl Fn(u64) -> Option<u64>,
    ) -> Option<u64> {
        if self.through.remove(&name) != Some(era) {
            return None;
        }
        self.pending.get(&name)?.iter().find_map(|&(first, sectors, effect)| {
            let dirty = |&sector: &u64| dirty_since(sector).is_some_and(|since| since <= effect);
            (first..first + sectors).find(dirty)
        })
    }

    /// A request has come back.
    pub fn came_back(
        &mut self,
        name: ChainName,
        succeeded: bool,
        image: u32,
        dirty_since: impl Fn(u64) -> Option<u64>,
    ) {
        self.now += 1;
        let effects = self.pending.remove(&name).unwrap_or_default();
        if !succeeded {
            return;
        }
        for (first, sectors, effect) in effects {
            for sector in first..first + sectors {
                let Some(since) = dirty_since(sector) else { continue };
                let new = Acknowledged { effect, at: self.now };
                let old = self.acknowledged.entry((image, sector)).or_insert(new);
                if old.effect < since {
                    *old = new;
                }
            }
        }
    }

    /// The time, for a flush that is about to be sent.
    pub fn now(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A flush that was sent at `sent` has succeeded. Says which sectors it should have saved.
    pub fn flushed(
        &self,
        sent: u64,
        image: u32,
        dirty: impl Iterator<Item = (u64, u64)>,
    ) -> Vec<u64> {
        let unsaved = |&(sector, since): &(u64, u64)| {
            let found = self.acknowledged.get(&(image, sector));
            found.is_some_and(|found| found.effect >= since && found.at < sent)
        };
        dirty.filter(unsaved).map(|(sector, _)| sector).collect()
    }
}
