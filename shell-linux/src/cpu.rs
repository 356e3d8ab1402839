//! Which CPU a thread runs on.

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// When there is no such CPU, or this process may not use it.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    ensure!(cpu < CpuSet::MAX_CPU, "there is no CPU {cpu}");
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("pinning to CPU {cpu}"))
}
