//! A guest that moves to another host: whenever its front end reads the dirty log and clears it, and
//! whenever the device dies, what was written is marked.

use sluice_sim::migration::{Case, copy_at_any_moment, copy_before_any_death};

//= spec/migration.md#MIG-3
//= spec/migration.md#MIG-4
#[test]
fn i14_a_log_that_is_read_and_cleared_at_any_moment_misses_nothing() {
    Case::all().iter().for_each(|case| copy_at_any_moment(case).unwrap());
}

/// What a dead device has given back stays given back: nobody will write or mark it again.
//= spec/migration.md#MIG-4
//= spec/migration.md#MIG-6
#[test]
fn i14_a_log_that_is_read_and_cleared_before_any_death_misses_nothing() {
    // Each ring in at least one of its kinds.
    Case::all().iter().step_by(2).for_each(|case| copy_before_any_death(case).unwrap());
}
