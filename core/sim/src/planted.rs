//! Plants each fault of the core in turn and looks for the first seed that catches it.

use std::panic::{catch_unwind, set_hook};
use std::process::ExitCode;

use sluice_core::planted::{Fault, plant};
use sluice_sim::world::run;

/// One line a fault; fails when one is not caught within so many seeds, or when something is
/// caught that was not planted.
/// Only the named faults, when there are names.
pub(crate) fn run_all(seeds: u64, names: &[&str]) -> ExitCode {
    // An assertion of the core that fails is a catch too.
    set_hook(Box::new(|_| ()));
    let mut missed = 0;
    let chosen = |fault: &Fault| names.is_empty() || names.contains(&&*format!("{fault:?}"));
    let chosen: Vec<Fault> = Fault::ALL.iter().copied().filter(chosen).collect();
    for &fault in &chosen {
        plant(Some(fault));
        let caught = (0..seeds).find_map(|seed| Some((seed, complaint(seed)?)));
        match caught {
            Some((seed, what)) => println!("{:<18} seed {seed:>4}  {what}", format!("{fault:?}")),
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
    println!("{} faults planted, {missed} not caught", chosen.len());
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
