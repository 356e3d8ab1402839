//! Files in the making: nameless to everybody else until they are whole and durable.

use std::fs::{File, read_dir, remove_file};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::claim::claim_path;
use super::fault::Fault;
use super::unfinished::Unfinished;
use crate::store::lock::Access;
use crate::store::marker;

/// Ends the names of files in the making, and of no others.
const ENDING: &str = ".sluice-new";

/// Characters of a name that the name of a file in the making begins with.
const NAME_CHARS: usize = 40;

/// A file that is removed again unless it is published.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) file: File,
    name: Unfinished,
    /// What it takes the place of, kept from everybody else until then.
    replaced: Option<File>,
}

impl NewFile {
    /// An empty file in the directory that `target` will lie in. What killed commands have left
    /// there is removed.
    pub(super) fn beside(target: &Path) -> anyhow::Result<Self> {
        let dir = target.parent().context("a file has a directory")?;
        sweep(dir);
        // The beginning of its name, for people: all of it and what is added could be too long.
        let name = target.file_name().context("a file has a name")?.to_string_lossy();
        let name: String = name.chars().take(NAME_CHARS).collect();
        loop {
            let name = Unfinished::new(dir.join(format!(".{name}.{}{ENDING}", random()?)));
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(name.path())
                .with_context(|| format!("cannot write in {}", dir.display()))?;
            let this = Self { file, name, replaced: None };
            // Tells those who sweep that somebody works on it; one of them may have been faster.
            let locked = flock(&this.file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if locked && this.file.metadata()?.nlink() > 0 {
                return Ok(this);
            }
        }
    }

    /// The same for one that may take the place of a file: of one that nobody uses, who would go
    /// on with a file that nobody can reach.
    //= spec/store.md#STO-17
    pub(super) fn instead_of(target: &Path) -> Result<Self, Fault> {
        let replaced = match claim_path(target, Access::Change) {
            Err(Fault::NotFound(_)) => None,
            claimed => Some(claimed?),
        };
        let mut this = Self::beside(target)?;
        this.replaced = replaced;
        Ok(this)
    }

    /// Where it is for now.
    fn path(&self) -> &Path {
        self.name.path()
    }

    /// Makes it durable and gives it its name in one step, which nothing may have yet unless
    /// `replace` says so.
    //= spec/store.md#STO-18
    //= spec/store.md#STO-31
    pub(super) fn publish(self, target: &Path, replace: bool) -> Result<(), Fault> {
        let shown = target.display();
        let sync = || format!("cannot make {shown} durable");
        self.file.sync_all().with_context(sync)?;
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, self.path(), CWD, target, flags) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Fault::Taken(format!("{shown} exists already"))),
            // The file system does not know the flag. A link never replaces either.
            Err(Errno::INVAL | Errno::NOSYS) if !replace => {
                match std::fs::hard_link(self.path(), target) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        return Err(Fault::Taken(format!("{shown} exists already")));
                    }
                    result => result.with_context(|| format!("cannot name {shown}"))?,
                }
            }
            Err(errno) => {
                return Err(Fault::Failed(
                    anyhow::Error::from(errno).context(format!("cannot name {shown}")),
                ));
            }
        }
        marker::sync_directory(target).with_context(sync)?;
        Ok(())
    }
}

/// Removes files in the making that nobody works on any more.
fn sweep(dir: &Path) {
    for entry in read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') || !name.ends_with(ENDING) {
            continue;
        }
        // A pipe of such a name would wait for somebody at its other end.
        let mut how = File::options();
        how.read(true).custom_flags(libc::O_NONBLOCK);
        let Ok(file) = how.open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = remove_file(entry.path());
        }
    }
}

fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = read_dir(dir).unwrap().map(Result::unwrap);
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    //= spec/store.md#STO-18
    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.raw");
        let (first, second) =
            (NewFile::beside(&target).unwrap(), NewFile::beside(&target).unwrap());
        assert_eq!(names(dir.path()).len(), 2, "who works on a file keeps it");
        assert!(!target.exists());
        first.publish(&target, false).unwrap();
        assert!(matches!(second.publish(&target, false), Err(Fault::Taken(_))));
        assert_eq!(names(dir.path()), ["a.raw"]);
        let third = NewFile::beside(&target).unwrap();
        third.file.set_len(5).unwrap();
        third.publish(&target, true).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 5);
        // A command was killed: its file has lost the lock and goes with the next command.
        std::fs::write(dir.path().join(format!(".b.raw.0123{ENDING}")), b"half").unwrap();
        std::fs::write(dir.path().join(".b.raw.0123.tmp"), b"of somebody else").unwrap();
        drop(NewFile::beside(&target).unwrap());
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, [".b.raw.0123.tmp", "a.raw"]);
    }
}
