//! The log: which lines are written, how many of them, and in what form.

mod filter;
mod line;
mod rate_limit;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;

pub use filter::parse_filter;
pub use line::escape;

use self::line::Lines;
use self::rate_limit::RateLimit;

/// Starts logging to standard error.
///
/// # Panics
/// When logging has been started already.
pub fn start(filter: EnvFilter) {
    let terminal = std::io::stderr().is_terminal();
    // A log that cannot be written is no reason to stop serving, and there is nobody to tell.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || Lines::new(terminal))
        .with_ansi(terminal)
        .log_internal_errors(false);
    let all = tracing_subscriber::registry().with(filter).with(RateLimit::new()).with(lines);
    tracing::subscriber::set_global_default(all).expect("logging is started once");
}
