//! What a measurement says.

use core::fmt;

use serde::Serialize;

use super::bench::{Rw, Wait};

/// What is printed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) rw: Rw,
    pub(super) bs: u64,
    pub(super) depth: u16,
    pub(super) queues: u16,
    pub(super) packed: bool,
    pub(super) wait: Wait,
    pub(super) seconds: f64,
    pub(super) iops: f64,
    pub(super) bytes_per_s: f64,
    pub(super) mean_us: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
    pub(super) errors: u64,
    /// Share of the time in which the threads were ready to run and had no CPU.
    pub(super) wait_share: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12.0} IOPS    {}/s", self.iops, bytes(self.bytes_per_s))?;
        writeln!(
            f,
            "{:>12.2} us mean    {:.2} p50    {:.2} p99    {:.2} p99.9    {:.2} max",
            self.mean_us, self.p50_us, self.p99_us, self.p999_us, self.max_us
        )?;
        if self.errors > 0 {
            writeln!(f, "{:>12} errors", self.errors)?;
        }
        if self.wait_share > 0.1 {
            let percent = 100.0 * self.wait_share;
            writeln!(f, "{percent:>11.0}% of the time without a CPU: this load was throttled")?;
        }
        Ok(())
    }
}

/// Bytes as people read them.
pub(super) fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut count, mut unit) = (count, 0);
    while count >= 1024.0 && unit + 1 < UNITS.len() {
        (count, unit) = (count / 1024.0, unit + 1);
    }
    format!("{count:.1} {}", UNITS[unit])
}
