//! Where images are kept unless somebody says otherwise.

use std::path::PathBuf;

/// The user's state directory for sluice, as the XDG base directory specification has it.
#[must_use]
pub fn state_dir() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    state
        .filter(|dir| dir.is_absolute())
        .or_else(home)
        .unwrap_or_else(std::env::temp_dir)
        .join("sluice")
}

/// Where images lie.
#[must_use]
pub fn images_dir() -> PathBuf {
    state_dir().join("images")
}
