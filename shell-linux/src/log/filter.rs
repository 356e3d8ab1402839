//! What `--log` may say.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Reads a level, or a filter: `TARGET=LEVEL` and levels, between commas.
///
/// A word that is no level would be taken for the name of a target, and nothing would be logged.
///
/// # Errors
/// When a word is no level, or the filter cannot be understood.
//= spec/tools.md#TOOL-1
pub fn parse_filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.rsplit('=').next().unwrap_or(part).trim();
        if level.parse::<LevelFilter>().is_err() || level.is_empty() {
            return Err(format!(
                "`{level}` is no level: say off, error, warn, info, debug or trace, or \
                 TARGET=LEVEL such as sluice_linux=debug"
            ));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    //= spec/tools.md#TOOL-1
    #[test]
    fn words_that_are_no_level_are_refused() {
        for good in ["off", "error", "warn", "INFO", "debug", "trace", "warn,sluice_linux=debug"] {
            assert_eq!(parse_filter(good).as_deref(), Ok(good));
        }
        for bad in ["warning", "verbose", "", "sluice_linux", "info,", "sluice_linux=loud", "="] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
