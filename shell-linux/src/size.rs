//! Sizes as people write them.

/// Bytes of a size such as `4096`, `64K`, `1.5G` or `2TiB`; units are powers of 1024.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(format!("{unit:?} is no unit; use K, M, G or T")),
    };
    let wrong = || format!("{text:?} is no size; write it like 512M or 10G");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let mut bytes = whole.checked_mul(1 << shift).ok_or_else(wrong)?;
    if !fraction.is_empty() {
        let digits: u64 = fraction.parse().map_err(|_| wrong())?;
        let scale = u32::try_from(fraction.len()).ok().and_then(|len| 10_u64.checked_pow(len));
        let part = u128::from(digits) * (1 << shift) / u128::from(scale.ok_or_else(wrong)?);
        let part = u64::try_from(part).map_err(|_| wrong())?;
        bytes = bytes.checked_add(part).ok_or_else(wrong)?;
    }
    Ok(bytes)
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
