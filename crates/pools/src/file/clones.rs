//! Volumes made from volumes.

use sistemo_model::Access;

use super::FilePool;
use super::draft::FileDraft;
use crate::contract::{Clones, Cost, Draft, Origin, Progress, Way};
use crate::{Description, PoolError};

impl Clones for FilePool {
    fn clone_cost(&self) -> Cost {
        self.cost()
    }

    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let source = match origin.snapshot {
            Some(snapshot) => self.open_kept(origin.volume, snapshot)?,
            None => self.open_data(origin.volume, Access::ReadOnly)?,
        };
        let mut draft: Box<FileDraft<'_>> = Box::new(self.begin(new)?);
        let way = draft.share(&source.file, self.copying, progress)?;
        draft.commit()?;
        Ok(way)
    }
}
