//! Exchange with the world outside: a volume as a file or a stream of some format, and back.
//!
//! | room | what is in it |
//! |---|---|
//! | `export` | volumes to files and streams |
//! | `import` | files and streams to volumes |
//! | `checksum` | whether the bytes that came are those that went |
//! | `scratch` | files in between, which nobody sees and nothing leaves behind |
//!
//! Raw is what it is: no format is guessed from what a file holds, for a guest may have written
//! any.

mod checksum;
mod export;
mod import;
mod scratch;

use sistemo_model::Digest;

pub(crate) use self::export::RawFile;
pub use self::export::{Export, Exported};
pub use self::import::{Imported, NewImported};
pub(crate) use self::scratch::require_space;

/// What is done about the SHA-256 of a volume's bytes, from its first to its last. Its holes
/// count as zeros, so it takes as long as the volume is large, however little it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing.
    Skip,
    /// It is told.
    Tell,
    /// It is told, and must be this one.
    Expect(Digest),
}

impl Checksum {
    fn is_wanted(&self) -> bool {
        *self != Checksum::Skip
    }
}

/// How much of a stream is read or written at a time.
const BUFFER: usize = 1 << 20;
