//! virtio-blk: what a chain asks for, and what the device says of itself.

pub mod config;
pub mod request;

pub use config::{BlkConfig, BlkFeatures};
pub use request::{BlkRequest, Limits, Range, Verdict, parse};

/// The status byte of a request (virtio 1.2, section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed.
    IoErr = 1,
    /// Not something this device does.
    Unsupported = 2,
}
