//! Images of the embedded store as a person sees them: names in a directory.
//!
//! The directory is the catalogue. An image is there when its file has its name, and it gets
//! that name in one step, when it is whole and durable.

mod catalog;
mod claim;
mod clone;
mod converter;
mod copy;
mod device;
mod fault;
mod foreign;
mod format;
mod import;
mod name;
mod new;
mod place;
mod qcow2;
mod raw;
mod sandbox;
mod source;
mod text;
mod unfinished;
mod vmdk;
mod vpc;

pub use catalog::{About, Catalog, check_size};
pub use fault::Fault;
pub use foreign::Container;
pub use format::{Content, Format};
pub use import::ImportOptions;
pub use name::Name;
pub use place::{images_dir, state_dir};
pub use raw::look_before_serving;
pub use unfinished::goes_with_signals;

/// Told how far a long operation has come: bytes done, and bytes there are.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// Told what a person should know besides.
pub type Note<'a> = &'a dyn Fn(String);
