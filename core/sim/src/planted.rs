//! Plants each fault of the core in turn and looks for the first seed that catches it.

use std::panic::{catch_unwind, set_hook};
use std::process::ExitCode;

use sluice_core::planted::{Fault, plant};
use sluice_sim::world::run;

/// One line a fault; fails when one is not caught within so many seeds, or when something is
/// caught that was not planted.
pub(crate) fn run_all(seeds: u64) -> ExitCode {
    // An assertion of the core that fails is a catch too.
    set_hook(Box::new(|_| ()));
    let mut missed = 0;
    for &fault in Fault::ALL {
        plant(Some(fault));
        let caught = (0..seeds).find_map(|seed| Some((seed, complaint(seed)?)));
        match caught {
            Some((seed, what)) => println!("{fault:<20?} seed {seed:>4}  {what}"),
            None => {
                println!("{fault:<20?} not caught in {seeds} seeds");
                missed += 1;
            }
        }
    }
    plant(None);
    let innocent = (0..seeds.min(100)).find_map(|seed| Some((seed, complaint(seed)?)));
    if let Some((seed, what)) = &innocent {
        println!("nothing planted, yet seed {seed}: {what}");
    }
    println!("{} faults planted, {missed} not caught", Fault::ALL.len());
    if missed == 0 && innocent.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a seed complains of first.
fn complaint(seed: u64) -> Option<String> {
    match catch_unwind(|| run(seed, false)) {
        Ok(outcome) => {
            let first = outcome.violations.first()?;
            let what: String = first.what.chars().take(80).collect();
            Some(format!("{} {what}", first.invariant))
        }
        Err(_) => Some("an assertion of the core".to_owned()),
    }
}
