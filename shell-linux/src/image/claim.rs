//! Keeping daemons off an image while a command works on it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::fault::Fault;
use super::name::Name;
use crate::store::Captured;
use crate::store::lock::{self, Access, Obstacle};

/// How often a held image is asked for again, and how long between: half a second in all.
const TRIES: u32 = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// Opens an image by its name and takes it until the file is closed.
pub(super) fn claim(path: &Path, name: &Name, access: Access) -> Result<File, Fault> {
    let file = match File::options().read(true).write(access == Access::Change).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(absent(path, name)),
        result => result.with_context(|| format!("cannot open {}", path.display()))?,
    };
    hold(&file, &format!("image {name}"), access)?;
    Ok(file)
}

/// The same for a file or device by its path, which may be no image of ours. It is opened for
/// reading whatever is to become of it.
pub(super) fn claim_path(path: &Path, access: Access) -> Result<File, Fault> {
    let shown = path.display();
    // A pipe would wait for somebody at its other end.
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Fault::NotFound(format!("there is no file {shown}")));
        }
        result => result.with_context(|| format!("cannot read {shown}"))?,
    };
    hold(&file, &shown.to_string(), access)?;
    Ok(file)
}

/// Takes an open file until it is closed; refused while somebody uses it.
//= spec/store.md#STO-17
pub(super) fn hold(file: &File, what: &str, access: Access) -> Result<(), Fault> {
    let Err(obstacle) = take(file, access) else { return Ok(()) };
    match obstacle.explain(file) {
        Captured::Yes => Ok(()),
        Captured::Failed(error) => Err(Fault::Failed(error.context(what.to_owned()))),
        Captured::Held { by: Some(holder), alive: true } => Err(Fault::Taken(format!(
            "{what} is in use by {holder}; detach it or stop that process first"
        ))),
        Captured::Looking | Captured::Held { by: None, .. } => Err(Fault::Taken(format!(
            "{what} is in use by a process that cannot be seen from here"
        ))),
        Captured::Held { by: Some(holder), alive: false } => Err(Fault::Taken(format!(
            "{what} still has I/O of {holder}, which is dead; try again when its device or \
             network answers"
        ))),
    }
}

/// Takes a file, with patience for a holder that is letting go: a process at its end, or a child
/// between fork and exec, which holds every lock of its parent for that moment.
fn take(file: &File, access: Access) -> Result<(), Obstacle> {
    for _ in 0..TRIES {
        match lock::take(file, access) {
            Err(Obstacle::Lock(_)) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    lock::take(file, access)
}

/// Says that there is no such image.
pub(super) fn absent(path: &Path, name: &Name) -> Fault {
    let dir = path.parent().unwrap_or(path).display();
    Fault::NotFound(format!("there is no image {name} in {dir}; `sluice image list` shows all"))
}
