//! What the commands print.

use std::path::Path;

use serde_json::{Value, json};

use crate::image::{About, Fault, Name};
use crate::output;
use crate::size::show_size;

/// Prints text, or JSON.
#[derive(Clone, Copy)]
pub(super) struct Show {
    json: bool,
}

impl Show {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// An image that something has been done to.
    pub(super) fn one(self, done: &str, about: &About) -> Result<(), Fault> {
        self.print(&json!(about), || {
            format!("{done} {} ({})\n", about.name, show_size(about.bytes))
        })
    }

    pub(super) fn info(self, about: &About) -> Result<(), Fault> {
        self.print(&json!(about), || {
            let mut text = format!(
                "name      {}\nfile      {}\nsize      {} ({} bytes)\nallocated {}\n",
                about.name,
                output::path(&about.path),
                show_size(about.bytes),
                about.bytes,
                show_size(about.allocated_bytes),
            );
            match &about.in_use {
                Some(holder) if holder.alive => text += &format!("in use    by {holder}\n"),
                Some(holder) => text += &format!("in use    by I/O of {holder}, dead\n"),
                None => text += "in use    no\n",
            }
            if about.poisoned {
                text += "poisoned  a sync failed; see `sluice image repair`\n";
            }
            text
        })
    }

    pub(super) fn all(self, images: &[About], dir: &Path) -> Result<(), Fault> {
        self.print(&json!(images), || {
            if images.is_empty() {
                return format!("no images in {}\n", output::path(dir));
            }
            let width = images.iter().map(|about| about.name.chars().count()).max();
            let width = width.unwrap_or(0).max(4);
            let mut text = format!("{:width$}  {:>8}  {:>9}  STATE\n", "NAME", "SIZE", "ALLOCATED");
            for about in images {
                let (size, used) = (show_size(about.bytes), show_size(about.allocated_bytes));
                let line = format!("{:width$}  {size:>8}  {used:>9}  {}", about.name, state(about));
                text += line.trim_end();
                text.push('\n');
            }
            text
        })
    }

    pub(super) fn removed(self, name: &Name) -> Result<(), Fault> {
        self.print(&json!({ "removed": name.as_str() }), || format!("removed {name}\n"))
    }

    pub(super) fn exported(self, name: &Name, file: &Path, bytes: u64) -> Result<(), Fault> {
        let value = json!({ "name": name.as_str(), "file": file, "bytes": bytes });
        self.print(&value, || {
            format!("wrote {name} ({}) to {}\n", show_size(bytes), output::path(file))
        })
    }

    pub(super) fn repaired(self, name: &Name, repaired: bool) -> Result<(), Fault> {
        let value = json!({ "name": name.as_str(), "repaired": repaired });
        self.print(&value, || {
            if repaired {
                format!("{name} is trusted again\n")
            } else {
                format!("{name} is not poisoned\n")
            }
        })
    }

    fn print(self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Fault> {
        let text = if self.json { format!("{:#}\n", output::json(value)?) } else { text() };
        Ok(output::print(text)?)
    }
}

fn state(about: &About) -> String {
    let mut states = Vec::new();
    match &about.in_use {
        Some(holder) if holder.alive => states.push(format!("in use by {}", holder.pid)),
        Some(holder) => states.push(format!("in use by I/O of {}, dead", holder.pid)),
        None => {}
    }
    if about.poisoned {
        states.push("poisoned".to_owned());
    }
    states.join(", ")
}
