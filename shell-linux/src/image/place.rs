//! Where images are kept unless somebody says otherwise.

use std::path::PathBuf;

use super::fault::Fault;

/// The user's state directory for sluice, as the XDG base directory specification has it.
///
/// # Errors
/// When the environment names none. A directory that all users share is no place for it: somebody
/// else may have made it.
//= spec/host.md#HOST-6
pub fn state_dir() -> Result<PathBuf, Fault> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".local/state"));
    let absolute = |dir: &PathBuf| dir.is_absolute();
    let base = state.filter(absolute).or_else(home).filter(absolute);
    base.map(|base| base.join("sluice")).ok_or_else(|| {
        Fault::Usage(
            "there is no home directory to keep images in: give --dir, or set XDG_STATE_HOME"
                .to_owned(),
        )
    })
}

/// Where images lie.
///
/// # Errors
/// As [`state_dir`].
pub fn images_dir() -> Result<PathBuf, Fault> {
    Ok(state_dir()?.join("images"))
}
