//! Sizes as people write them.

/// Reads a number of bytes: `512`, `4k`, `64M`, `1G`, `2T`; powers of 1024.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..].to_ascii_lowercase()[..] {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("unknown unit `{unit}`: K, M, G and T are known")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("2T"), Ok(2 << 40));
        for bad in ["", "k", "4x", "-1", "1.5G", "99999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}

/// A size as [`parse_size`] takes it: exact where few digits do, else to one decimal.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let units = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| bytes >> shift > 0) else {
        return bytes.to_string();
    };
    let whole = bytes >> shift;
    let tenths = (u128::from(bytes & ((1 << shift) - 1)) * 10) >> shift;
    if tenths == 0 { format!("{whole}{unit}") } else { format!("{whole}.{tenths}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64K", 65536), ("1.5G", 3 << 29), ("2TiB", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1.G2", "-1", "1X", "1.5.5G", "99999999999T", "1e9", "١"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1 << 10, "1K"),
            (3 << 29, "1.5G"),
            ((1 << 30) + 1, "1G"),
            (u64::MAX, "16777215.9T"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
