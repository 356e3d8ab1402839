//! The other disk: a guest that reads and a front end that asks, one after the other, all the time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::LIMIT;
use crate::support::client::Client;
use crate::support::guest::Guest;
use crate::victim::Victim;

#[derive(Default)]
struct Shared {
    answers: AtomicU64,
    longest_us: AtomicU64,
    over: AtomicBool,
}

pub(crate) struct Neighbour(Arc<Shared>, Option<JoinHandle<()>>);

impl Neighbour {
    pub(crate) fn start(path: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || work(&path, &of_thread));
        Self(shared, Some(thread))
    }

    pub(crate) fn answers(&self) -> u64 {
        self.0.answers.load(Ordering::SeqCst)
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.0.longest_us.load(Ordering::SeqCst))
    }

    /// Waits for two more answers: one of its shard and one of the control thread have begun after
    /// everything that came before.
    pub(crate) fn goes_on(&self, victim: &Victim) {
        let (begun, limit) = (self.answers(), Instant::now() + LIMIT);
        while self.answers() < begun + 4 {
            victim.lives();
            assert!(Instant::now() < limit, "the neighbour waits: {}", victim.threads());
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
        if !std::thread::panicking() {
            self.1.take().map(JoinHandle::join).expect("once").expect("it has had all its answers");
        }
    }
}

fn work(path: &std::path::Path, shared: &Shared) {
    let mut client = Client::new(crate::connect(path));
    client.stream.set_read_timeout(None).expect("a socket");
    client.negotiate();
    let mut guest = Guest::new();
    guest.start(&mut client);
    let mut last = Instant::now();
    let mut answered = || {
        let waited = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.longest_us.fetch_max(waited, Ordering::SeqCst);
        shared.answers.fetch_add(1, Ordering::SeqCst);
        last = Instant::now();
    };
    let mut done: u16 = 0;
    while !shared.over.load(Ordering::SeqCst) {
        guest.read();
        done = done.wrapping_add(1);
        while guest.used() != done {
            std::thread::sleep(Duration::from_micros(100));
        }
        answered();
        client.features();
        answered();
    }
}
