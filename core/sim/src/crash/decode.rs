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
