//! What is known of a thing that somebody else keeps.

/// "It is not there" and "nobody could be asked" lead to different acts; an `Option` cannot tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Known<T, E> {
    /// It is this.
    Is(T),
    /// It is not there.
    Absent,
    /// Nobody knows: this went wrong.
    Unknown(E),
}

impl<T, E> From<Result<Option<T>, E>> for Known<T, E> {
    fn from(answer: Result<Option<T>, E>) -> Self {
        match answer {
            Ok(Some(found)) => Self::Is(found),
            Ok(None) => Self::Absent,
            Err(error) => Self::Unknown(error),
        }
    }
}
