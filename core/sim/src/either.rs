//! Enums `Side` of a split and a packed form.

/// The same call for whichever format a `Side` is of.
macro_rules! either {
    ($self:expr, $side:ident => $call:expr) => {
        match $self {
            Side::Split($side) => $call,
            Side::Packed($side) => $call,
        }
    };
}

pub(crate) use either;
