//! What a test does on a machine that lacks what it needs.

/// Says that it leaves something out; fails it where everything has to run, as in `.ci/run`.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("SLUICE_NO_SKIP").is_none(), "has to run, but would skip: {why}");
    println!("skipped: {why}");
}
