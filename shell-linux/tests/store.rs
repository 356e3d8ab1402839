//! The embedded store, through its public face.

#[path = "store/agree.rs"]
mod agree;
#[path = "store/apart.rs"]
mod apart;
#[path = "store/basics.rs"]
mod basics;
#[path = "store/fuse.rs"]
mod fuse;
#[path = "store/device.rs"]
mod device;
#[path = "store/full.rs"]
mod full;
#[path = "store/kit.rs"]
mod kit;
#[path = "store/lock.rs"]
mod lock;
#[path = "store/poison.rs"]
mod poison;
#[path = "store/qemu.rs"]
mod qemu;
#[path = "store/room.rs"]
mod room;
#[path = "store/watch.rs"]
mod watch;
