//! Plants each fault of the core in turn and looks for the first seed that catches it.

use std::panic::{UnwindSafe, catch_unwind, set_hook};
use std::process::ExitCode;

use sluice_core::planted::{Fault, plant};
use sluice_sim::crash::{Plan, explore};
use sluice_sim::crowd;
use sluice_sim::lives::live_long;
use sluice_sim::migration::{Case, copy_at_any_moment, copy_before_any_death};
use sluice_sim::world::run;

/// Seeds that are asked before daemons are killed at every moment.
const FIRST: u64 = 100;

/// One line a fault; fails when one is not caught within so many seeds, or when something is
/// caught that was not planted. Only the named faults, when there are names.
pub(crate) fn run_all(seeds: u64, names: &[&str]) -> ExitCode {
    // An assertion of the core that fails is a catch too.
    set_hook(Box::new(|_| ()));
    let mut missed = 0;
    let chosen = |fault: &Fault| names.is_empty() || names.contains(&&*format!("{fault:?}"));
    let chosen: Vec<Fault> = Fault::ALL.iter().copied().filter(chosen).collect();
    for &fault in &chosen {
        plant(Some(fault));
        let by_kills = || Some(("kills".to_owned(), killed()?));
        let by_crowds = || Some(("crowds".to_owned(), crowded()?));
        let by_seed = |seed| Some((format!("seed {seed:>4}"), complaint(|| of_seed(seed))?));
        let by_lives = || Some(("lives".to_owned(), complaint(lived)?));
        let by_copies = || Some(("copies".to_owned(), complaint(copied)?));
        let small = || by_crowds().or_else(by_kills).or_else(by_lives).or_else(by_copies);
        // Most are seen by one of the first seeds, and every exploration takes seconds.
        let first = seeds.min(FIRST);
        let caught = (0..first).find_map(by_seed);
        match caught.or_else(small).or_else(|| (first..seeds).find_map(by_seed)) {
            Some((how, what)) => println!("{:<18} {how:<9}  {what}", format!("{fault:?}")),
            None => {
                println!("{fault:<20?} not caught in {seeds} seeds");
                missed += 1;
            }
        }
    }
    plant(None);
    let of_seed = |seed| Some((seed, complaint(|| of_seed(seed))?));
    let innocent = (0..seeds.min(FIRST)).find_map(of_seed);
    if let Some((seed, what)) = &innocent {
        println!("nothing planted, yet seed {seed}: {what}");
    }
    println!("{} faults planted, {missed} not caught", chosen.len());
    if missed == 0 && innocent.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What goes wrong first; an assertion of the core that fails is a catch too.
fn complaint(run: impl FnOnce() -> Option<String> + UnwindSafe) -> Option<String> {
    let what = catch_unwind(run).unwrap_or_else(|_| Some("an assertion of the core".to_owned()))?;
    Some(what.chars().take(90).collect())
}

/// What a seed complains of.
fn of_seed(seed: u64) -> Option<String> {
    let outcome = run(seed, false);
    let first = outcome.violations.first()?;
    Some(format!("{} {}", first.invariant, first.what))
}

/// What long lives bring to light.
fn lived() -> Option<String> {
    [(false, 0), (true, 0x8000)]
        .into_iter()
        .find_map(|(packed, base)| live_long(packed, base).err())
}

/// What copying a guest at every moment brings to light.
fn copied() -> Option<String> {
    let all = Case::all();
    let last = |what: String| what.rsplit("}: ").next().map(str::to_owned);
    let missed = all.iter().find_map(|case| copy_at_any_moment(case).err());
    missed.or_else(|| all.iter().find_map(|case| copy_before_any_death(case).err())).and_then(last)
}

/// What comes to light where everybody wants more than there is.
fn crowded() -> Option<String> {
    (0..100).find_map(|seed| complaint(|| crowd::run(seed).err()))
}

/// What killing a daemon at every moment brings to light.
fn killed() -> Option<String> {
    let plans = [(2, 2, false), (3, 2, false), (2, 2, true), (3, 3, false)];
    let plans = plans.map(|plan| (plan, false)).into_iter();
    plans.chain([((2, 2, false), true), ((2, 2, true), true)]).find_map(|(plan, packed)| {
        let (requests, depth, more) = plan;
        let plan = Plan {
            requests,
            depth,
            rounds: if more { 1 } else { 2 },
            packed,
            size: if packed { 5 } else { 4 },
            index: u16::MAX,
            event_idx: more,
            adds_while_down: more,
            resets_while_down: false,
        };
        complaint(|| {
            Some(explore(plan).err()?.split("}: ").last()?.split("]: ").last()?.to_owned())
        })
    })
}
