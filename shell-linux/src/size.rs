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
