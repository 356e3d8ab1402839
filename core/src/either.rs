//! Enums of a split and a packed form.

/// The same call for whichever format `self` is.
macro_rules! either {
    ($self:expr, $format:ident => $call:expr) => {
        match $self {
            Self::Split($format) => $call,
            Self::Packed($format) => $call,
        }
    };
}

pub(crate) use either;
