//! The `file` driver, as the registry knows it.

use std::sync::Arc;

use sistemo_model::CatalogueId;

use super::FilePool;
use crate::config::PoolConfig;
use crate::registry::{Driver, DriverInfo, DriverOption, Power};
use crate::{FirstUse, Pool, PoolError};

pub(super) const NAME: &str = "file";

/// A directory of sparse files, on any filesystem.
#[derive(Clone, Copy, Debug)]
pub struct FileDriver;

impl Driver for FileDriver {
    fn info(&self) -> DriverInfo {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        DriverInfo {
            name: NAME.to_owned(),
            // What Qubes OS R3.2 and Incus call the same thing.
            aliases: words(&["xen", "dir"]),
            classes: words(&["qubes.storage.xen.XenStorage"]),
            summary: "a directory of sparse files, on any filesystem".to_owned(),
            options: vec![DriverOption::directory()],
            powers: vec![Power::Clone, Power::Snapshot],
        }
    }

    fn open(
        &self,
        pool: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        let directory = pool.place()?;
        let opened = FilePool::open(pool.name.clone(), directory, catalogue, first_use)?;
        Ok(Arc::new(opened))
    }
}
