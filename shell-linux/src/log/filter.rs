//! What `--log` may say.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Reads a level, or a filter: `TARGET=LEVEL` and levels, between commas.
///
/// A word that is no level would be taken for the name of a target, and nothing would be logged.
///
/// # Errors
/// When a word is no level, nothing has such a target, or the filter cannot be understood.
//= spec/tools.md#TOOL-1
pub fn parse_filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let (target, level) = part.rsplit_once('=').unwrap_or(("", part));
        let (target, level) = (target.trim(), level.trim());
        let plain = !level.is_empty() && level.bytes().all(|letter| letter.is_ascii_alphabetic());
        if !plain || level.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{level}` is no level: say off, error, warn, info, debug or trace, or \
                 TARGET=LEVEL such as sluice_linux=debug"
            ));
        }
        if !target.is_empty() && !is_target(target) {
            return Err(format!(
                "nothing logs as `{target}`: targets are sluice_linux and its modules"
            ));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Whether lines of this program may have a target that begins so.
fn is_target(beginning: &str) -> bool {
    let all = env!("CARGO_CRATE_NAME");
    all.starts_with(beginning) || beginning.strip_prefix(all).is_some_and(|m| m.starts_with("::"))
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
        for bad in
            ["warning", "verbose", "", "sluice_linux", "info,", "sluice_linux=loud", "=", "5"]
        {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }

    //= spec/tools.md#TOOL-1
    #[test]
    fn targets_that_nothing_has_are_refused() {
        for good in ["sluice=debug", "sluice_linux::store=trace,warn"] {
            assert_eq!(parse_filter(good).as_deref(), Ok(good));
        }
        for bad in ["sluice-linux=debug", "sluice_linuxx=debug", "disk=debug", "[span]=debug"] {
            let said = parse_filter(bad).unwrap_err();
            assert!(said.contains("nothing logs as"), "{bad}: {said}");
        }
    }
}
