//! Sizes as people write them.

/// Reads a number of bytes: `512`, `4k`, `64M`, `1.5G`, `2TiB`; powers of 1024.
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
    let number = |digits: &str| {
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| plain).ok_or_else(|| format!("`{text}` is no size"))
    };
    let large = || format!("`{text}` is too large");
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let whole: u64 = number(whole)?;
    let scale = u32::try_from(fraction.len()).ok().and_then(|places| 10_u64.checked_pow(places));
    let part = (u128::from(number(fraction)?) << shift) / u128::from(scale.ok_or_else(large)?);
    let part = u64::try_from(part).map_err(|_| large())?;
    whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add(part)).ok_or_else(large)
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
    fn sizes_are_read() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("64MiB", 64 << 20),
            ("1.5G", 3 << 29),
            ("0.0009765625T", 1 << 30),
            ("2T", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "k",
            "4x",
            "-1",
            "+1",
            "1.",
            ".5G",
            "1.G",
            "1.5.5G",
            "1e9",
            "99999999T",
            "1.\u{661}",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        let cases = [
            (0, "0"),
            (1023, "1023"),
            (1 << 10, "1K"),
            (3 << 29, "1.5G"),
            ((1 << 30) + 1, "1G"),
            (u64::MAX, "16777215.9T"),
        ];
        for (bytes, text) in cases {
            assert_eq!(show_size(bytes), text);
        }
    }
}
