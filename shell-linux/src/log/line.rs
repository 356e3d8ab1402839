//! Lines: what is in a name stays in its line.

use std::borrow::Cow;
use std::io::{self, Write};

/// Writes control characters so that they can be seen and do nothing.
#[must_use]
//= spec/host.md#HOST-1
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        let seen = |c: char| -> Cow<'_, str> {
            if c.is_control() {
                c.escape_default().to_string().into()
            } else {
                c.to_string().into()
            }
        };
        text.chars().map(seen).collect::<String>().into()
    } else {
        Cow::Borrowed(text)
    }
}

/// Standard error, for one line at a time.
pub(super) struct Lines {
    /// Whether the line may have colours; those that are in a name have been taken out before.
    colours: bool,
}

impl Lines {
    pub(super) const fn new(colours: bool) -> Self {
        Self { colours }
    }
}

impl Write for Lines {
    /// The whole line comes in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = match self.colours {
            true => text.split('\x1b').map(escape).collect::<Vec<_>>().join("\x1b").into(),
            false => escape(text),
        };
        io::stderr().write_all(format!("{text}\n").as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    //= spec/host.md#HOST-1
    #[test]
    fn control_characters_are_shown() {
        assert_eq!(escape("disk ä.raw"), "disk ä.raw");
        assert_eq!(escape("a\nb\r\t\x1b[31m\u{9b}"), "a\\nb\\r\\t\\u{1b}[31m\\u{9b}");
    }
}
