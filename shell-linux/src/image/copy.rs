//! Copying bytes and leaving the holes out.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Progress;

/// Bytes moved at once.
const CHUNK: usize = 1 << 20;
/// Zeroes of this many bytes become a hole.
const GRAIN: usize = 64 << 10;

/// Copies the first `bytes` of a file into one that reads as zeroes, and ends it there.
//= spec/store.md#STO-19
pub(super) fn copy(
    from: &File,
    into: &File,
    bytes: u64,
    progress: Progress<'_>,
) -> std::io::Result<()> {
    into.set_len(bytes)?;
    copy_onto(from, into, bytes, progress)
}

/// Copies the first `bytes` of a file into what has them and reads as zeroes there.
pub(super) fn copy_onto(
    from: &File,
    into: &File,
    bytes: u64,
    progress: Progress<'_>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, bytes)? {
        at = start;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            from.read_exact_at(&mut buffer[..len], at)?;
            for (grain, place) in buffer[..len].chunks(GRAIN).zip((at..).step_by(GRAIN)) {
                if grain.iter().any(|&byte| byte != 0) {
                    into.write_all_at(grain, place)?;
                }
            }
            at += len as u64;
            progress(at, bytes);
        }
    }
    progress(bytes, bytes);
    Ok(())
}

/// The next range from `at` on that may hold other than zeroes.
fn next_data(file: &File, at: u64, bytes: u64) -> std::io::Result<Option<(u64, u64)>> {
    if at >= bytes {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(Errno::NXIO) => return Ok(None),
        // Devices and some file systems do not tell.
        Err(_) => return Ok(Some((at, bytes))),
    };
    if start >= bytes {
        return Ok(None);
    }
    let end = seek(file, SeekFrom::Hole(start)).map_or(bytes, |end| end.min(bytes));
    Ok(Some((start, end.max(start + 1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    //= spec/store.md#STO-19
    #[test]
    fn what_is_copied_is_the_same_and_takes_no_more_space() {
        let (from, into) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes = 64 << 20;
        from.set_len(bytes).unwrap();
        from.write_all_at(&[1; 5000], 3).unwrap();
        from.write_all_at(&[0; 1 << 20], 1 << 20).unwrap();
        from.write_all_at(b"near the end", bytes - 13).unwrap();
        let seen = std::cell::Cell::new(0);
        copy(&from, &into, bytes, &|done, all| {
            assert!(done >= seen.get() && done <= all);
            seen.set(done);
        })
        .unwrap();
        assert_eq!(seen.get(), bytes);
        let read = |file: &File| {
            let mut all = vec![0xff; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(read(&from) == read(&into));
        assert_eq!(into.metadata().unwrap().len(), bytes);
        assert!(into.metadata().unwrap().blocks() * 512 <= 256 << 10);
    }
}
