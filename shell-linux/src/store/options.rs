//! How an image is to be opened.

use std::fmt;

/// What carries operations out on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// System calls in the caller's thread: right where they never sleep.
    Inline,
    /// One io_uring an image.
    Uring,
    /// Threads that make the system calls.
    Threads,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Uring => "io_uring",
            Self::Threads => "threads",
        })
    }
}

/// How an image is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Whether nothing may be written. The image may then be open read-only elsewhere too.
    pub read_only: bool,
    /// Bytes of a logical block as guests see it: 512 or 4096.
    ///
    /// Direct I/O needs blocks as large as the file system's; where they are not, the page cache
    /// serves the image. What is on an image depends on this, so it never changes by itself.
    pub block_bytes: u32,
    /// Whether to bypass the page cache where that is possible.
    pub direct: bool,
    /// The engine, for those who know better than the file system's type.
    pub engine: Option<EngineKind>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, block_bytes: 512, direct: true, engine: None }
    }
}
