//! What an inflight area says, read from its bytes independently of the core.

/// What is under way by an area of a split queue, in the order in which it was taken.
///
/// # Errors
/// What is impossible about it.
pub fn in_flight(area: &[u8], used_idx: u16) -> Result<Vec<u16>, String> {
    let u16_at = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let (version, count) = (u16_at(8), usize::from(u16_at(10)));
    if version == 0 {
        return Ok(Vec::new());
    }
    let mut marked: Vec<(u64, u16)> = Vec::new();
    for (head, record) in (0..).zip(area[16..].chunks_exact(16).take(count)) {
        if record[0] == 1 {
            let counter = record[8..].try_into().map_err(|_| "a record is cut")?;
            marked.push((u64::from_le_bytes(counter), head));
        }
    }
    let unsettled = used_idx.wrapping_sub(u16_at(14));
    let mut head = u16_at(12);
    for _ in 0..unsettled {
        let at = 16 + 16 * usize::from(head);
        if usize::from(head) >= count {
            return Err(format!("the last batch of {unsettled} has head {head}"));
        }
        marked.retain(|&(_, other)| other != head);
        head = u16_at(at + 6);
    }
    marked.sort_unstable();
    Ok(marked.into_iter().map(|(_, head)| head).collect())
}

/// The same by an area of a packed queue and the descriptors of its ring, by buffer id.
///
/// # Errors
/// What is impossible about it.
pub fn in_flight_packed(area: &[u8], ring: &[u8]) -> Result<Vec<u16>, String> {
    let u16_of = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let head = |at| usize::from(u16_of(area, at));
    if head(8) == 0 {
        return Ok(Vec::new());
    }
    let records: Vec<&[u8]> = area[32..].chunks_exact(32).take(head(10)).collect();
    // The last batch was given back if there is one and its first descriptor is not as it was.
    let (new, old) = ((head(16), area[20]), (head(18), area[21]));
    let used = u16_of(ring, 16 * old.0 + 14) & 0x8000 != 0;
    let mut free = head(if new != old && used == (old.1 == 1) { 12 } else { 14 });
    let mut is_free = vec![false; records.len()];
    while free < records.len() {
        if core::mem::replace(&mut is_free[free], true) {
            return Err(format!("record {free} is free twice"));
        }
        free = u16_of(records[free], 2).into();
    }
    let mut taken: Vec<(u64, u16)> = Vec::new();
    for (head, first) in records.iter().enumerate().filter(|(_, record)| record[0] == 1) {
        if is_free[head] {
            continue;
        }
        let last = records.get(usize::from(u16_of(first, 4)));
        let last = last.ok_or_else(|| format!("the chain of record {head} has no end"))?;
        let counter = first[8..16].try_into().map_err(|_| "a record is cut")?;
        taken.push((u64::from_le_bytes(counter), u16_of(last, 16)));
    }
    taken.sort_unstable();
    Ok(taken.into_iter().map(|(_, id)| id).collect())
}
