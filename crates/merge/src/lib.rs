//! JSON patch, merge patch and strategic merge patch over the schema table; no I/O.
//!
//! Each function takes an object and a patch and gives a new object; nothing is checked against the type afterwards,
//! that is what `cumulet_api::schema::check` does (with `Mode::Patched` after a strategic merge).
//!
//! Absent: server-side apply. Its seam is the table itself: `Field::list_type`, `Field::list_map_keys`, `Field::atomic`
//! and `Type::atomic` say how it splits an object into owned fields, and a function `apply(ty, live, applied, manager,
//! force)` beside [`strategic`] will be all that it adds here. Callers answer `application/apply-patch+yaml` with 415
//! until then.

mod json;
mod list;
mod strategic;

pub use json::{json_patch, merge_diff, merge_patch};
pub use strategic::strategic;

use cumulet_api::{Status, StatusReason};

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The patch is not a patch: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: 422.
    #[error("{0}")]
    DoesNotApply(String),
    /// The patch would make too much of little: 413.
    #[error("{0}")]
    TooLarge(String),
}

impl MergeError {
    /// The answer that tells a client of the failure.
    pub fn to_status(&self) -> Status {
        let reason = match self {
            Self::Malformed(_) => StatusReason::BadRequest,
            Self::DoesNotApply(_) => StatusReason::Invalid,
            Self::TooLarge(_) => StatusReason::RequestEntityTooLarge,
        };
        Status::new(reason, self.to_string())
    }
}

fn malformed<T>(message: impl Into<String>) -> Result<T, MergeError> {
    Err(MergeError::Malformed(message.into()))
}

#[cfg(test)]
mod tests;
