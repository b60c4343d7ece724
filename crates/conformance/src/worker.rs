//! The process that is killed half-way.

use serde::{Deserialize, Serialize};

use crate::Place;

/// What a worker is to do, as JSON that fits into an argument or a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The pool it works in.
    pub place: Place,
}
