//! Requests through a whole shard, with a store that does nothing and a guest that costs nothing
//! inside the measured part: instructions per request (under callgrind) and nanoseconds.
//!
//! `hot_path [--inflight] [--packed] [--depth N] [--requests N]`

use std::time::Instant;

use sluice_sim::belt::{Belt, arena, memory};

fn option(name: &str, default: u32) -> u32 {
    let mut args = std::env::args();
    args.find(|arg| arg == name).map_or(default, |_| args.next().unwrap().parse().unwrap())
}

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags of their own; a few requests do then.
    let given = |name: &str| std::env::args().any(|arg| arg == name);
    let (inflight, packed) = (given("--inflight"), given("--packed"));
    let depth = u16::try_from(option("--depth", 32)).unwrap();
    let requests = option("--requests", 100_000);
    let (mut arena, mem) = (arena(), memory());
    let mut belt = Belt::new(&mut arena, &mem, inflight, packed);
    let (mut ended, mut nanos) = (0, 0);
    while ended < requests {
        belt.feed(depth);
        let start = Instant::now();
        belt.measured_turn();
        nanos += start.elapsed().as_nanos();
        belt.grant();
        ended += belt.reap();
    }
    let each = nanos / u128::from(ended);
    println!(
        "{ended} requests at depth {depth}, inflight {inflight}, packed {packed}: {each} ns each"
    );
}
