//! What two sides that sleep can do at most: wake each other and nothing else.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::{sys, Result};

/// Round trips a second between this thread and one on another core.
pub fn round_trips(time: Duration, other_cpu: usize) -> Result<f64> {
    let (mut go, mut back) = (sys::event()?, sys::event()?);
    let (mut gone, mut answer) = (go.try_clone()?, back.try_clone()?);
    let one = 1_u64.to_ne_bytes();
    std::thread::spawn(move || {
        let _ = sys::pin(other_cpu);
        while gone.read_exact(&mut [0; 8]).is_ok() && answer.write_all(&one).is_ok() {}
    });
    let (start, mut trips) = (Instant::now(), 0);
    while start.elapsed() < time {
        go.write_all(&one)?;
        back.read_exact(&mut [0; 8])?;
        trips += 1;
    }
    Ok(f64::from(trips) / start.elapsed().as_secs_f64())
}
