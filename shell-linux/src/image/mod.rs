//! Images of the embedded store as a person sees them: names in a directory.
//!
//! The directory is the catalogue. An image is there when its file has its name, and it gets
//! that name in one step, when it is whole and durable.

mod catalog;
mod claim;
mod clone;
mod copy;
mod fault;
mod import;
mod name;
mod new;
mod place;
mod qemu_img;

pub use catalog::{About, Catalog};
pub use fault::Fault;
pub use import::Format;
pub use name::Name;
pub use place::{images_dir, state_dir};

/// Told how far a long operation has come: bytes done, and bytes there are.
pub type Progress<'a> = &'a dyn Fn(u64, u64);
