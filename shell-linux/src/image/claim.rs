//! Keeping daemons off an image while a command works on it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::fault::Fault;
use super::name::Name;
use crate::store::lock::{self, Captured};

/// How often a held image is asked for again, and how long between: half a second in all.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// What a command does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Change,
}

/// Opens an image and takes it until the file is closed; refused while somebody uses it.
//= spec/store.md#STO-17
pub(super) fn claim(path: &Path, name: &Name, how: Use) -> Result<File, Fault> {
    let file = match File::options().read(true).write(how == Use::Change).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(absent(path, name)),
        result => result.with_context(|| format!("cannot open {}", path.display()))?,
    };
    match take(&file, how) {
        Captured::Yes => Ok(file),
        Captured::Failed(error) => Err(Fault::Failed(error.context(format!("image {name}")))),
        Captured::Held { by: Some(holder), alive: true } => Err(Fault::Taken(format!(
            "image {name} is in use by {holder}; detach it or stop that process first"
        ))),
        Captured::Held { by: None, .. } => Err(Fault::Taken(format!(
            "image {name} is in use by a process that cannot be seen from here"
        ))),
        Captured::Held { by: Some(holder), alive: false } => Err(Fault::Taken(format!(
            "image {name} still has I/O of {holder}, which is dead; try again when its device or \
             network answers"
        ))),
    }
}

/// Takes an image, with patience for a holder that is letting go: a process at its end, or a child
/// between fork and exec, which holds every lock of its parent for that moment.
fn take(file: &File, how: Use) -> Captured {
    let attempt = || lock::take(file, how == Use::Read);
    for _ in 0..TRIES {
        match attempt() {
            Captured::Held { .. } => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    attempt()
}

/// Says that there is no such image.
pub(super) fn absent(path: &Path, name: &Name) -> Fault {
    let dir = path.parent().unwrap_or(path).display();
    Fault::NotFound(format!("there is no image {name} in {dir}; `sluice image list` shows all"))
}
