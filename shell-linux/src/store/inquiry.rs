//! Who is in the way of taking an image, found out behind the shard's back.
//!
//! Every process of the host may have to be looked at, and the kernel answers when it likes. So
//! a thread of its own asks. It has nothing open that belongs to the image: a copy of that
//! descriptor would keep its locks.

use std::fs::File;
use std::thread::{Builder, JoinHandle};

use super::holder::{Holder, Lock, Place};
use super::lock::Captured;

/// What is known of who is in the way.
#[derive(Debug)]
pub(super) struct Inquiry {
    place: Place,
    /// One at a time, so that not many get stuck.
    thread: Option<JoinHandle<Option<Holder>>>,
    /// Who it was; `None` inside for one who cannot be seen.
    found: Option<Option<Holder>>,
}

impl Inquiry {
    pub(super) fn new(file: &File) -> std::io::Result<Self> {
        Ok(Self { place: Place::of(file)?, thread: None, found: None })
    }

    /// What has been found out so far, and asks anew.
    //= spec/store.md#STO-30
    pub(super) fn ask(&mut self, lock: Lock) -> Captured {
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            self.found = thread.join().ok();
        }
        if self.thread.is_none() {
            let (place, last) = (self.place.clone(), self.found.clone());
            let look = move || find(&place, lock, last);
            // Without one, the next try may get it.
            self.thread = Builder::new().name("holder".to_owned()).spawn(look).ok();
        }
        self.found.clone().map_or(Captured::Looking, Captured::held)
    }

    /// Nobody is in the way any more. What is still being found out is of the past.
    pub(super) fn over(&mut self) {
        (self.thread, self.found) = (None, None);
    }
}

/// Finds who holds a lock. For that of a byte every process has to be asked, which is done once
/// as long as that one is there.
fn find(place: &Place, lock: Lock, last: Option<Option<Holder>>) -> Option<Holder> {
    match (lock, last) {
        (Lock::Byte(_), Some(by)) if by.as_ref().is_none_or(Holder::is_there) => by,
        _ => Holder::find(place, lock),
    }
}
