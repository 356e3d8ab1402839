//! Names and words from outside, made fit for a line of text.

use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// A path as it is shown: what would break out of its line is escaped.
pub(super) fn shown(path: &Path) -> String {
    line(&path.to_string_lossy())
}

//= spec/convert.md#CNV-8
/// Text without anything that moves a terminal or ends a line.
pub(super) fn line(text: &str) -> String {
    let escaped = |char: char| match char.is_control() {
        true => char.escape_default().to_string(),
        false => char.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// What something is that is neither a file nor a block device.
pub(super) fn kind(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_symlink() => Some("a symbolic link"),
        () => Some("a character device"),
    }
}
