//! Fixed pools over lent memory, and the lists that thread through them.
//!
//! A slot is named by its index while it is in use, and by a [`SlotId`] where a name may outlive
//! the use (an operation that has been sent): the generation tells a late name from a new one.
//! `LINKS` is the number of lists that one slot can be in at the same time; [`Fifo`] says which
//! link it uses. The free list is threaded through link 0, which is why a slot must leave its
//! lists before it is released.

use crate::planted::{Fault, planted};

/// No slot: the end of a list.
const NONE: u32 = u32::MAX;

/// A slot's name together with the use it was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SlotId {
    /// Place in the pool.
    pub index: u32,
    /// Counts the uses of that place.
    pub generation: u32,
}

/// One place of a pool.
#[derive(Clone, Debug)]
pub struct Slot<T, const LINKS: usize> {
    links: [u32; LINKS],
    /// Odd while the place is in use: no name of a free place is ever given out.
    generation: u32,
    value: T,
}

impl<T, const LINKS: usize> Slot<T, LINKS> {
    /// A free place holding `value`, ready to be lent to [`Slots::new`].
    pub const fn new(value: T) -> Self {
        Self { links: [NONE; LINKS], generation: 0, value }
    }

    #[inline]
    const fn in_use(&self) -> bool {
        self.generation & 1 == 1
    }
}

/// A pool over lent places.
///
/// Places are handed out last-used-first, so that a lightly loaded pool touches little memory.
#[derive(Debug)]
pub struct Slots<'s, T, const LINKS: usize> {
    places: &'s mut [Slot<T, LINKS>],
    free: u32,
    // Places at and above this index were never used and are not in the free list.
    fresh: u32,
    available: u32,
}

impl<'s, T, const LINKS: usize> Slots<'s, T, LINKS> {
    /// Takes over lent places; all of them are free.
    ///
    /// # Panics
    /// When there are 2^32 - 1 places or more.
    pub fn new(places: &'s mut [Slot<T, LINKS>]) -> Self {
        let available = u32::try_from(places.len()).expect("pool too large");
        assert!(available < NONE, "pool too large");
        // Places that an earlier pool was still using are free again, their names stale.
        for place in places.iter_mut().filter(|place| place.in_use()) {
            place.generation = place.generation.wrapping_add(1);
        }
        Self { places, free: NONE, fresh: 0, available }
    }

    /// Free places.
    #[must_use]
    pub const fn available(&self) -> u32 {
        self.available
    }

    /// Places in use.
    #[must_use]
    pub const fn in_use(&self) -> u32 {
        self.capacity() - self.available
    }

    /// All places.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "checked in new")]
    pub const fn capacity(&self) -> u32 {
        self.places.len() as u32
    }

    /// Takes a free place, whose value is what its last user left; `None` when all are in use.
    #[inline]
    pub fn acquire(&mut self) -> Option<u32> {
        let recycled = self.free != NONE;
        let index = if recycled { self.free } else { self.fresh };
        let slot = self.places.get_mut(index as usize)?;
        if recycled {
            self.free = slot.links[0];
        } else {
            self.fresh += 1;
        }
        debug_assert!(!slot.in_use());
        slot.generation = slot.generation.wrapping_add(1);
        self.available -= 1;
        Some(index)
    }

    /// Gives a place back; every [`SlotId`] of it becomes stale.
    #[inline]
    pub fn release(&mut self, index: u32) {
        let slot = &mut self.places[index as usize];
        assert!(slot.in_use(), "released twice");
        slot.generation = slot.generation.wrapping_add(1);
        slot.links[0] = self.free;
        self.free = index;
        self.available += 1;
    }

    /// Takes a free place for `value` and names it; `None` when all are in use.
    #[inline]
    pub fn insert(&mut self, value: T) -> Option<SlotId> {
        let index = self.acquire()?;
        let slot = &mut self.places[index as usize];
        slot.value = value;
        Some(SlotId { index, generation: slot.generation })
    }

    /// Gives the place back that `id` names, with what was in it, unless it is stale.
    #[inline]
    pub fn remove(&mut self, id: SlotId) -> Option<T>
    where
        T: Copy,
    {
        let index = self.find(id)?;
        let value = self[index];
        self.release(index);
        Some(value)
    }

    /// The place that `id` names, unless it is stale or was never given out.
    #[must_use]
    #[inline]
    pub fn find(&self, id: SlotId) -> Option<u32> {
        let slot = self.places.get(id.index as usize)?;
        let same = slot.generation == id.generation || planted(Fault::StaleNames);
        (same && slot.in_use()).then_some(id.index)
    }

    /// Whether this place is in use.
    #[must_use]
    pub fn is_used(&self, index: u32) -> bool {
        self.places[index as usize].in_use()
    }

    /// The indices of the places in use. For control work, not for the data path.
    pub fn used(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.fresh).filter(|&index| self.places[index as usize].in_use())
    }

    /// The values of the places in use. For control work, not for the data path.
    pub fn used_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let places = self.places.iter_mut().take(self.fresh as usize);
        places.filter(|slot| slot.in_use()).map(|slot| &mut slot.value)
    }
}

impl<T, const LINKS: usize> core::ops::Index<u32> for Slots<'_, T, LINKS> {
    type Output = T;
    #[inline]
    fn index(&self, index: u32) -> &T {
        &self.places[index as usize].value
    }
}

impl<T, const LINKS: usize> core::ops::IndexMut<u32> for Slots<'_, T, LINKS> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.places[index as usize].value
    }
}

/// A first-in first-out list of slots, threaded through link number `LINK` of a pool.
///
/// A slot may be in at most one list per link; the owner of the pool keeps track of which.
#[derive(Clone, Copy, Debug)]
pub struct Fifo<const LINK: usize> {
    head: u32,
    tail: u32,
    len: u32,
}

impl<const LINK: usize> Fifo<LINK> {
    /// A list without members.
    pub const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0 };

    /// Whether the list has no members.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of members.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// The first member, which stays in the list.
    #[must_use]
    pub const fn first(&self) -> Option<u32> {
        if self.len == 0 { None } else { Some(self.head) }
    }

    /// The members in order, with their values.
    #[inline]
    pub fn iter<'a, T, const LINKS: usize>(
        &self,
        slots: &'a Slots<'_, T, LINKS>,
    ) -> impl Iterator<Item = (u32, &'a T)> {
        let (mut next, mut left) = (self.head, self.len);
        core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let (index, slot) = (next, &slots.places[next as usize]);
            next = slot.links[LINK];
            Some((index, &slot.value))
        })
    }

    /// Adds a slot at the end.
    #[inline]
    pub fn push<T, const LINKS: usize>(&mut self, slots: &mut Slots<'_, T, LINKS>, index: u32) {
        if self.len == 0 {
            self.head = index;
        } else {
            slots.places[self.tail as usize].links[LINK] = index;
        }
        self.tail = index;
        self.len += 1;
    }

    /// Adds a slot at the front.
    pub fn push_front<T, const LINKS: usize>(
        &mut self,
        slots: &mut Slots<'_, T, LINKS>,
        index: u32,
    ) {
        if self.len == 0 {
            self.tail = index;
        }
        slots.places[index as usize].links[LINK] = self.head;
        self.head = index;
        self.len += 1;
    }

    /// Takes the first slot out.
    #[inline]
    pub fn pop<T, const LINKS: usize>(&mut self, slots: &mut Slots<'_, T, LINKS>) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let index = self.head;
        self.head = slots.places[index as usize].links[LINK];
        self.len -= 1;
        Some(index)
    }

    /// Takes `index` out wherever it stands; linear, for control work.
    pub fn remove<T, const LINKS: usize>(
        &mut self,
        slots: &mut Slots<'_, T, LINKS>,
        index: u32,
    ) -> bool {
        let mut found = false;
        for _ in 0..self.len {
            let Some(first) = self.pop(slots) else { break };
            if first == index {
                found = true;
            } else {
                self.push(slots, first);
            }
        }
        found
    }

    /// Moves all members of `other` behind its own, in their order.
    pub fn append<T, const LINKS: usize>(
        &mut self,
        slots: &mut Slots<'_, T, LINKS>,
        other: &mut Self,
    ) {
        while let Some(index) = other.pop(slots) {
            self.push(slots, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places<const N: usize>() -> [Slot<u8, 2>; N] {
        core::array::from_fn(|_| Slot::new(0))
    }

    #[test]
    fn a_stale_name_finds_nothing() {
        let mut places = places::<2>();
        let mut slots = Slots::new(&mut places);
        let id = slots.insert(7).unwrap();
        assert_eq!(slots.find(id), Some(0));
        assert_eq!(slots.remove(id), Some(7));
        assert_eq!((slots.find(id), slots.remove(id)), (None, None));
        assert_eq!(slots.acquire(), Some(0), "last used first");
        assert_eq!(slots.find(id), None, "same place, another use");
        assert_eq!(slots.find(SlotId { index: 9, generation: 0 }), None);
    }

    #[test]
    fn a_pool_gives_out_each_place_once() {
        let mut places = places::<3>();
        let mut slots = Slots::new(&mut places);
        let taken: std::vec::Vec<_> = core::iter::from_fn(|| slots.acquire()).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!((slots.available(), slots.in_use()), (0, 3));
        slots.release(1);
        assert_eq!(slots.used().collect::<std::vec::Vec<_>>(), [0, 2]);
    }

    #[test]
    fn lent_again_all_places_are_free_and_old_names_are_stale() {
        let mut places = places::<1>();
        let mut slots = Slots::new(&mut places);
        let id = slots.insert(7).unwrap();
        let mut slots = Slots::new(&mut places);
        assert_eq!((slots.find(id), slots.available()), (None, 1));
        assert_eq!(slots.acquire(), Some(0));
        assert_eq!(slots.find(id), None);
        slots.release(0);
    }

    #[test]
    fn lists_on_different_links_do_not_disturb_each_other() {
        let mut places = places::<4>();
        let mut slots = Slots::new(&mut places);
        let (mut zero, mut one) = (Fifo::<0>::EMPTY, Fifo::<1>::EMPTY);
        for _ in 0..4 {
            let index = slots.acquire().unwrap();
            zero.push(&mut slots, index);
            one.push(&mut slots, 3 - index);
        }
        assert!(zero.remove(&mut slots, 2));
        assert!(!zero.remove(&mut slots, 2));
        let order: std::vec::Vec<_> = core::iter::from_fn(|| zero.pop(&mut slots)).collect();
        assert_eq!(order, [0, 1, 3]);
        let order: std::vec::Vec<_> = core::iter::from_fn(|| one.pop(&mut slots)).collect();
        assert_eq!(order, [3, 2, 1, 0]);
    }
}
