//! Where a daemon under test parks its front ends: the other end of a keeper's socket, looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use sluice_linux::parking::record::{Record, parse};
use sluice_linux::parking::{Parking, Place};

/// Where in its file a record carries its mark.
const MARK: u64 = 12;

const RECORD: &str = "sluice-0-record";

/// How long a test waits for what has to come; a test that gets there has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// What a daemon has parked of its only disk, and ever had.
pub(crate) struct Store {
    socket: OwnedFd,
    held: BTreeMap<String, OwnedFd>,
    /// Numbers of descriptors, in the order in which they were parked.
    pub(crate) numbers: Vec<u32>,
}

impl Store {
    /// A store with these descriptors in it, and the place that a daemon gets in it.
    pub(crate) fn new(held: BTreeMap<String, OwnedFd>) -> (Self, Place) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let found = held.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
        let place = Parking::over(theirs, found.collect()).unwrap().place(0);
        (Self { socket: ours, held, numbers: Vec::new() }, place)
    }

    /// Takes in what the daemon has sent so far.
    pub(crate) fn hear(&mut self) {
        let mut bytes = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(&self.socket, &mut pieces, &mut control, flags) {
                Ok(got) if got.bytes > 0 => got.bytes,
                _ => return,
            };
            let fds = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let fd = fds.flatten().next();
            let text = String::from_utf8(bytes[..got].to_vec()).unwrap();
            let (word, name) = text.split_once("\nFDNAME=").expect("a name");
            match (word, fd) {
                ("FDSTORE=1", Some(fd)) => {
                    self.numbers.extend(number(name));
                    let twice = self.held.insert(name.to_owned(), fd);
                    assert!(twice.is_none(), "{name} is parked twice");
                }
                ("FDSTOREREMOVE=1", None) => {
                    //= spec/parking.md#PRK-2
                    assert!(!self.names(name), "{name} is dropped while the record names it");
                    assert!(self.held.remove(name).is_some(), "{name} was not parked");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn names(&self, name: &str) -> bool {
        // Whether it is marked does not matter here.
        let mut bytes = self.bytes();
        let mark = usize::try_from(MARK).unwrap();
        bytes[mark..mark + 4].fill(0);
        let record = parse(&bytes);
        record.is_ok_and(|record| record.descriptors().any(|serial| Some(serial) == number(name)))
    }

    /// The record's file.
    pub(crate) fn file(&self) -> File {
        self.held[RECORD].try_clone().unwrap().into()
    }

    fn bytes(&self) -> Vec<u8> {
        let file = self.file();
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Waits until the record is whole and unmarked; everything that it names is parked then, and
    /// nothing else.
    pub(crate) fn record(&mut self) -> Record {
        let begin = Instant::now();
        loop {
            self.hear();
            if self.held.contains_key(RECORD)
                && let Ok(record) = parse(&self.bytes())
            {
                let named: Vec<_> = record.descriptors().collect();
                self.hear();
                let parked: Vec<u32> = self.held.keys().filter_map(|name| number(name)).collect();
                //= spec/parking.md#PRK-2
                assert!(named.iter().all(|serial| parked.contains(serial)), "{named:?} {parked:?}");
                // What it has ceased to name is dropped a moment later.
                if parked.iter().all(|serial| named.contains(serial)) {
                    return record;
                }
            }
            assert!(begin.elapsed() < LIMIT, "no record: {:?}", self.held);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What is in it, left for a successor.
    pub(crate) fn leave(mut self) -> BTreeMap<String, OwnedFd> {
        self.hear();
        self.held
    }
}

/// Whether a record in this file carries its mark.
pub(crate) fn is_marked(file: &File) -> bool {
    let mut mark = [0; 4];
    file.read_exact_at(&mut mark, MARK).unwrap();
    mark != [0; 4]
}

/// The number of a descriptor by its name.
fn number(name: &str) -> Option<u32> {
    name.strip_prefix("sluice-0-").and_then(|number| number.parse().ok())
}
