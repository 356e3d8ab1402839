//! What one disk's front ends may have of what all disks share.

use core::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::reaper::Grave;
use crate::mailbox::Bell;

/// Descriptors that a disk's front end may have at most: 3 for each of 128 queues, one for each
/// of 64 regions and a few; and as many again that are still being closed when it comes back.
const DESCRIPTORS_EACH_MAX: u64 = 1024;
/// Descriptors left to what is no front end's: files, logs, what libraries open.
const DESCRIPTORS_OWN: u64 = 64;

/// How much there is: for one disk at most, and for all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// For each disk.
    pub each: u64,
    /// For all.
    pub all: u64,
}

impl Quota {
    /// Bytes to map: three quarters of the address space, of which one disk may have half. Where
    /// addresses have 47 bits these are 96 and 48 TiB, and the largest machines one can rent have
    /// 32 TiB.
    #[must_use]
    pub fn memory() -> Self {
        let here = 0_u8;
        let top = core::ptr::from_ref(&here).addr().checked_next_power_of_two();
        let all = top.unwrap_or(usize::MAX) as u64 / 4 * 3;
        Self { each: all / 2, all }
    }

    /// Descriptors: what the process may have open beside what it has open now.
    //= spec/outsiders.md#OUT-6
    #[must_use]
    pub fn descriptors() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        let all = limit.unwrap_or(u64::MAX).saturating_sub(open + DESCRIPTORS_OWN);
        Self { each: all.min(DESCRIPTORS_EACH_MAX), all }
    }
}

/// Everything that is shared.
#[derive(Debug)]
pub struct Pools {
    memory: Arc<Pool>,
    descriptors: Arc<Pool>,
    any_file: bool,
    bell: Bell,
}

impl Pools {
    /// For so many disks. `any_file` is the operator's word that front ends are trusted with
    /// memory that may block whoever touches it. The bell rings when a front end has waited and need
    /// not any more.
    #[must_use]
    pub fn new(
        disks: usize,
        (memory, descriptors): (Quota, Quota),
        any_file: bool,
        bell: Bell,
    ) -> Self {
        let pool = |unit, option, quota| {
            Arc::new(Pool { unit, option, quota, used: Mutex::new(vec![0; disks]) })
        };
        Self {
            memory: pool("bytes of memory", "--memory-max and --memory-max-all", memory),
            descriptors: pool("descriptors", "the limit on open files (ulimit -n)", descriptors),
            any_file,
            bell,
        }
    }

    /// What the disk of this number and name has.
    #[must_use]
    pub fn account(&self, disk: usize, name: &str) -> Account {
        let share = |pool: &Arc<Pool>| Share { pool: Arc::clone(pool), disk };
        Account {
            memory: share(&self.memory),
            descriptors: share(&self.descriptors),
            any_file: self.any_file,
            grave: Arc::new(Grave::new(name.to_owned(), self.bell.clone())),
        }
    }
}

/// What one disk's front ends have.
#[derive(Clone, Debug)]
pub struct Account {
    memory: Share,
    descriptors: Share,
    any_file: bool,
    grave: Arc<Grave>,
}

impl Account {
    /// Room for `bytes` of memory.
    ///
    /// # Errors
    /// [`Exceeded`]
    pub fn map(&self, bytes: u64) -> Result<Taken, Exceeded> {
        self.memory.take(bytes)
    }

    /// Room for `count` descriptors.
    ///
    /// # Errors
    /// [`Exceeded`]
    pub fn open(&self, count: u64) -> Result<Taken, Exceeded> {
        self.descriptors.take(count)
    }

    /// Takes a descriptor over.
    ///
    /// # Errors
    /// [`Exceeded`]
    pub fn hold(&self, fd: OwnedFd) -> Result<Descriptor, Exceeded> {
        Ok(Descriptor { fd, _taken: self.open(1)? })
    }

    /// Whether memory may be a file of any kind.
    pub(crate) const fn any_file(&self) -> bool {
        self.any_file
    }

    /// Whether nothing more is to be taken from its front end for now.
    pub(crate) fn is_full(&self) -> bool {
        self.grave.is_full()
    }

    /// Where its memory goes in the end.
    pub(crate) const fn grave(&self) -> &Arc<Grave> {
        &self.grave
    }
}

/// A descriptor that a front end has handed over, accounted for until it is closed.
#[derive(Debug)]
pub struct Descriptor {
    // Closed first.
    fd: OwnedFd,
    _taken: Taken,
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One kind of thing that disks share.
#[derive(Debug)]
struct Pool {
    unit: &'static str,
    option: &'static str,
    quota: Quota,
    /// By disk.
    used: Mutex<Vec<u64>>,
}

impl Pool {
    fn used(&self) -> MutexGuard<'_, Vec<u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One disk's part of a pool.
#[derive(Clone, Debug)]
struct Share {
    pool: Arc<Pool>,
    disk: usize,
}

impl Share {
    /// Half of what there is is kept for each disk in equal shares, whatever the others have taken
    /// of the rest.
    //= spec/outsiders.md#OUT-5
    fn take(&self, amount: u64) -> Result<Taken, Exceeded> {
        let Quota { each, all } = self.pool.quota;
        let mut used = self.pool.used();
        let share = (all / 2 / used.len() as u64).min(each);
        let has = used[self.disk];
        let wants = has.saturating_add(amount);
        let exceeded =
            |scope, limit| Exceeded { pool: Arc::clone(&self.pool), scope, limit, has, amount };
        if wants > each {
            return Err(exceeded(Scope::Disk, each));
        }
        let others = used.iter().enumerate().filter(|(disk, _)| *disk != self.disk);
        let kept: u64 = others.map(|(_, &used)| used.max(share)).sum();
        if wants > share && kept.saturating_add(wants) > all {
            return Err(exceeded(Scope::All, all));
        }
        used[self.disk] = wants;
        Ok(Taken { share: self.clone(), amount })
    }
}

/// What was taken of a pool; given back when dropped.
#[derive(Debug)]
pub struct Taken {
    share: Share,
    amount: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.share.pool.used()[self.share.disk] -= self.amount;
    }
}

/// Whose limit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Disk,
    All,
}

/// There is no room for something.
#[derive(Debug)]
pub struct Exceeded {
    pool: Arc<Pool>,
    scope: Scope,
    limit: u64,
    has: u64,
    amount: u64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, scope, limit, has, amount } = self;
        let who = match scope {
            Scope::Disk => "one disk's front end",
            Scope::All => "the front ends of all disks together",
        };
        let Pool { unit, option, .. } = &**pool;
        write!(
            f,
            "{amount} more {unit} beside the {has} that it has: {who} may have {limit} ({option})"
        )
    }
}

impl core::error::Error for Exceeded {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(disks: usize, each: u64, all: u64) -> Vec<Account> {
        let quota = Quota { each, all };
        let pools = Pools::new(disks, (quota, quota), false, Bell::new().unwrap());
        (0..disks).map(|disk| pools.account(disk, "disk")).collect()
    }

    //= spec/outsiders.md#OUT-5
    #[test]
    fn one_disk_has_its_limit_and_no_more() {
        let disks = pools(2, 100, 1000);
        let _some = disks[0].map(60).unwrap();
        let refused = disks[0].map(41).unwrap_err().to_string();
        assert!(refused.contains("one disk's") && refused.contains("--memory-max"), "{refused}");
        let rest = disks[0].map(40).unwrap();
        assert!(disks[0].map(1).is_err());
        drop(rest);
        assert!(disks[0].map(40).is_ok());
        assert!(disks[0].map(u64::MAX).is_err());
        // Descriptors are counted apart.
        assert!(disks[0].open(100).is_ok());
    }

    //= spec/outsiders.md#OUT-5
    #[test]
    fn a_share_is_kept_for_each_disk_whatever_the_others_take() {
        let disks = pools(4, 1000, 800);
        // 100 are kept for each of the others.
        let refused = disks[0].map(501).unwrap_err().to_string();
        assert!(refused.contains("all disks together"), "{refused}");
        let _greedy = disks[0].map(500).unwrap();
        assert!(disks[1].map(101).is_err());
        let _shares: Vec<_> = disks[1..].iter().map(|disk| disk.map(100).unwrap()).collect();
        assert!(disks[1].map(1).is_err());
    }

    //= spec/outsiders.md#OUT-6
    #[test]
    fn the_largest_machines_fit() {
        let Quota { each, all } = Quota::memory();
        assert!(all >= each && each > 0);
        #[cfg(target_arch = "x86_64")]
        assert_eq!((each, all), (48 << 40, 96 << 40));
    }
}
