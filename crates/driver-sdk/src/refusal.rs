//! What a pool's error is in the protocol.

use sistemo_pools::PoolError;
use sistemo_pools::external::in_words;
use sistemo_pools::external::protocol::{ErrorBody, ErrorCode};

/// The error with all that caused it.
pub(crate) fn body_of(error: &PoolError) -> ErrorBody {
    ErrorBody {
        code: code_of(error),
        message: in_words(error),
    }
}

fn code_of(error: &PoolError) -> ErrorCode {
    match error {
        PoolError::NoSuchVolume { .. } => ErrorCode::NoSuchVolume,
        PoolError::AlreadyThere { .. } | PoolError::DraftThere { .. } => ErrorCode::AlreadyThere,
        PoolError::NoSuchSnapshot { .. } => ErrorCode::NoSuchSnapshot,
        PoolError::SnapshotThere { .. } => ErrorCode::SnapshotThere,
        PoolError::Full { .. } => ErrorCode::Full,
        PoolError::ReadOnly { .. } => ErrorCode::ReadOnly,
        PoolError::BadSize { .. } => ErrorCode::BadSize,
        PoolError::TooLarge { .. } => ErrorCode::TooLarge,
        PoolError::Unsuited { .. } | PoolError::BadOption { .. } => ErrorCode::Unsuited,
        PoolError::Unavailable { .. }
        | PoolError::NoMarker { .. }
        | PoolError::BadMarker { .. }
        | PoolError::OtherCatalogue { .. }
        | PoolError::OtherPool { .. }
        | PoolError::Replaced { .. } => ErrorCode::Unavailable,
        PoolError::Damaged { .. } | PoolError::BadDescription { .. } => ErrorCode::Damaged,
        _ => ErrorCode::Failed,
    }
}
