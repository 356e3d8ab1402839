//! The limit on open descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises it as far as the system allows. The usual 1,024 are kept low for programs that use
/// select(2), and a few front ends with many queues need more.
//= spec/outsiders.md#OUT-6
pub fn raise() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // A system that does not let it rise has its old limit, which is kept to.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
