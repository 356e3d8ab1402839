//! Whether a VHD has the end that it must have.

use std::fs::File;

use super::format::read_to_end;

/// Bytes of a footer.
const FOOTER: usize = 512;
/// The kind of a disk that holds only what differs from another.
const DIFFERENCING: u32 = 4;

/// Whether the footer is where it belongs: it is the last thing in the file.
pub(super) fn is_whole(file: &File, bytes: u64) -> std::io::Result<bool> {
    Ok(footer(file, bytes)?.is_some_and(|footer| footer.starts_with(b"conectix")))
}

/// Whether the disk holds only what differs from another, which the converter leaves out.
pub(super) fn is_differencing(file: &File, bytes: u64) -> std::io::Result<bool> {
    let kind = footer(file, bytes)?.and_then(|footer| footer[60..].first_chunk().copied());
    Ok(kind.map(u32::from_be_bytes) == Some(DIFFERENCING))
}

fn footer(file: &File, bytes: u64) -> std::io::Result<Option<[u8; FOOTER]>> {
    let mut footer = [0; FOOTER];
    let Some(at) = bytes.checked_sub(FOOTER as u64) else { return Ok(None) };
    read_to_end(file, &mut footer, at)?;
    Ok(Some(footer))
}
