//! Every way in which a run may go, one after the other.

/// The choices of one run, and those that were not taken yet.
#[derive(Debug, Default)]
pub struct Choices {
    /// What was chosen, of how many, and at which moment.
    path: Vec<(usize, usize, u64)>,
    at: usize,
}

impl Choices {
    /// One of `count`, at this moment of a run.
    pub fn pick(&mut self, count: usize, moment: u64) -> usize {
        if self.at == self.path.len() {
            self.path.push((0, count, moment));
        }
        let (chosen, of, _) = self.path[self.at];
        debug_assert_eq!(of, count, "a run goes the same way twice");
        self.at += 1;
        chosen
    }

    /// Goes the same way again.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// Goes the next way; says from which moment on it differs from all before. `None` when
    /// there is no other.
    pub fn next_way(&mut self) -> Option<u64> {
        self.at = 0;
        while let Some((chosen, of, moment)) = self.path.pop() {
            if chosen + 1 < of {
                self.path.push((chosen + 1, of, moment));
                return Some(moment);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_are_gone_once() {
        let mut choices = Choices::default();
        let mut ways = Vec::new();
        loop {
            let first = choices.pick(2, 5);
            let second = choices.pick(first + 1, 8);
            ways.push((first, second));
            match choices.next_way() {
                Some(moment) => assert_eq!(moment, if ways.len() == 1 { 5 } else { 8 }),
                None => break,
            }
        }
        assert_eq!(ways, [(0, 0), (1, 0), (1, 1)]);
    }
}
