//! Names of images.

use std::fmt;
use std::str::FromStr;

/// A name that is safe as the beginning of a file's name and as an argument of a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// Bytes of the longest name.
const BYTES_MAX: usize = 128;

impl FromStr for Name {
    type Err = String;

    //= spec/store.md#STO-16
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{text:?} is no name for an image: {why}"));
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text.len() > BYTES_MAX {
            return wrong("it is longer than 128 bytes");
        }
        if text.starts_with(['.', '-']) {
            return wrong("it begins with a dot or a dash");
        }
        if text.contains('/') || text.chars().any(char::is_control) {
            return wrong("it contains a slash or a control character");
        }
        if text.ends_with(".raw") {
            return wrong("leave .raw out, every image's file ends in it");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= spec/store.md#STO-16
    #[test]
    fn names_stay_inside_their_directory() {
        for good in ["a", "disk 1", "größe", "a.b-c", &"x".repeat(128)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        let long = "x".repeat(129);
        for bad in
            ["", ".", "..", ".a", "-a", "a/b", "/a", "../a", "a\0", "a\n", "a\x7f", "a.raw", &long]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
