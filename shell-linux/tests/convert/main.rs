//! Images from and to files elsewhere, with the real qemu-img.

mod confined;
mod containers;
mod incomplete;
mod kit;
mod references;
#[path = "../store/room.rs"]
mod room;
mod signals;
mod sizes;
mod targets;
