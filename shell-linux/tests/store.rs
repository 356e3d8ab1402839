//! The embedded store, through its public face.

#[path = "store/kit.rs"]
mod kit;
#[path = "store/basics.rs"]
mod basics;
