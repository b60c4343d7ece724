//! Room kept for giving room back.
//!
//! On a full filesystem even a delete needs some: the catalogue writes down what is about to go. So a
//! file of 1 MB stands in the data directory, and what gives room back may use its place. Where that
//! is not enough, the trash on the same filesystem goes.

use rustix::fs::{FallocateFlags, fallocate};
use sistemo_host::directory::{Directory, Open};
use sistemo_host::system;

use crate::engine::Engine;

const NAME: &str = "reserve";
const SIZE: u64 = 1 << 20;
/// Below this the filesystem has no room to keep any for later.
const PLENTY: u64 = 16 * SIZE;

impl Engine {
    /// Sets the reserve aside where there is none and room for it. Without one everything works
    /// until the filesystem is full, so a failure is of no account.
    pub(crate) fn keep_reserve(&self, directory: &Directory) {
        if directory.contains(NAME).unwrap_or(true) || self.room().is_none_or(|free| free < PLENTY)
        {
            return;
        }
        let kept = directory.file(NAME, Open::CreateNew).map(|file| {
            // Written space and not a hole: a hole would hold nothing.
            fallocate(&file, FallocateFlags::empty(), 0, SIZE)
        });
        tracing::debug!(?kept, "set the reserve aside");
    }

    /// Gives the reserve back where the filesystem is full: what follows makes room, or must be
    /// recorded in any case.
    pub(crate) fn use_reserve_where_full(&self) {
        if self.room().is_some_and(|free| free < SIZE)
            && let Ok(directory) = Directory::open(self.data_dir())
        {
            let given = directory.unlink(NAME);
            tracing::debug!(?given, "gave the reserve back");
        }
    }

    /// Where the data directory's filesystem has no room for a reserve, gives the trash on it back
    /// until there is.
    pub(crate) fn relieve_data_dir(&self) {
        let Some(free) = self.room().filter(|free| *free < PLENTY) else {
            return;
        };
        if free >= SIZE && self.data_dir().join(NAME).exists() {
            return;
        }
        let trash = self.trash_beside(self.data_dir(), None);
        if !trash.is_empty() {
            self.use_reserve_where_full();
            let given = self.give_trash_back(&trash, self.data_dir(), &|| self.room(), PLENTY);
            tracing::debug!(given, "gave back the trash beside the catalogue");
        }
    }

    fn room(&self) -> Option<u64> {
        system::space(self.data_dir()).ok().map(|space| space.free)
    }
}
