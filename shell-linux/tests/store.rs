//! The embedded store, through its public face.

#[path = "store/agree.rs"]
mod agree;
#[path = "store/apart.rs"]
mod apart;
#[path = "store/basics.rs"]
mod basics;
#[allow(dead_code)]
#[path = "support/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "support/disk.rs"]
mod disk;
#[path = "store/durable.rs"]
mod durable;
#[path = "store/fuse.rs"]
mod fuse;
#[path = "store/device.rs"]
mod device;
#[path = "store/full.rs"]
mod full;
#[allow(dead_code)]
#[path = "support/guest.rs"]
mod guest;
#[path = "store/kit.rs"]
mod kit;
#[path = "store/lock.rs"]
mod lock;
#[path = "store/mounted.rs"]
mod mounted;
#[path = "store/poison.rs"]
mod poison;
#[path = "store/qemu.rs"]
mod qemu;
#[path = "store/room.rs"]
mod room;
#[path = "store/volatile.rs"]
mod volatile;
#[path = "store/watch.rs"]
mod watch;
