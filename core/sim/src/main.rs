//! Runs seeds of the simulator: `sluice-sim SEED [--log]`, `sluice-sim --seeds FROM..TO`.

use std::process::ExitCode;
use std::time::Instant;

use sluice_sim::world::{Outcome, run};

#[cfg(sluice_planted)]
mod planted;

const USAGE: &str = "usage: sluice-sim SEED [--log] | sluice-sim --seeds FROM..TO";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    #[cfg(sluice_planted)]
    if let ["--planted", seeds, ref names @ ..] = arguments[..] {
        return planted::run_all(seeds.parse().unwrap_or(1000), names);
    }
    let seeds = match arguments[..] {
        [seed] => seed.parse().map(|seed| (seed, seed + 1, false)).ok(),
        [seed, "--log"] | ["--log", seed] => seed.parse().map(|seed| (seed, seed + 1, true)).ok(),
        ["--seeds", range] => range.split_once("..").and_then(|(from, to)| {
            Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?, false))
        }),
        _ => None,
    };
    match seeds {
        Some((from, to, show)) => run_all(from, to, show),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run_all(from: u64, to: u64, show: bool) -> ExitCode {
    let start = Instant::now();
    let (mut failed, mut events, mut requests) = (0_u64, 0, 0);
    for seed in from..to {
        let Outcome { hash, violations, .. } = {
            let outcome = run(seed, show);
            events += outcome.events;
            requests += outcome.requests;
            outcome
        };
        for violation in violations.iter().take(3) {
            println!("seed {seed}: {} {}", violation.invariant, violation.what);
        }
        if !violations.is_empty() {
            println!("  replay: cargo run --release -p sluice-sim -- {seed} --log");
            failed += 1;
        }
        if to - from == 1 {
            println!("seed {seed}: hash {hash:016x}");
        } else if (seed + 1 - from).is_multiple_of(500) {
            eprintln!("{} of {} seeds, {failed} failed", seed + 1 - from, to - from);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} seeds, {failed} failed, {requests} requests, {events} events, {seconds:.1} s",
        to - from
    );
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
