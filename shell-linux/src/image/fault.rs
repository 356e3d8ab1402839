//! Why something was not done.

use std::fmt;

/// What a caller can do about it tells the kinds apart.
#[derive(Debug)]
pub enum Fault {
    /// What was asked for makes no sense, or wants to be confirmed.
    Usage(String),
    /// There is no such image or file, or nobody who serves a disk.
    NotFound(String),
    /// Somebody uses it, or the name is taken.
    Taken(String),
    /// It was tried.
    Failed(anyhow::Error),
}

impl Fault {
    /// The exit code of a command that ends with it.
    //= spec/tools.md#TOOL-5
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 4,
            Self::Taken(_) => 5,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::NotFound(text) | Self::Taken(text) => f.write_str(text),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
