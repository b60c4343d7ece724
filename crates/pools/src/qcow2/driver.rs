//! The `qcow2` driver, as the registry knows it.

use std::sync::Arc;

use sistemo_model::CatalogueId;

use super::Qcow2Pool;
use crate::config::PoolConfig;
use crate::registry::{Driver, DriverInfo, DriverOption, Power};
use crate::{FirstUse, Pool, PoolError};

pub(super) const NAME: &str = "qcow2";

/// A directory of qcow2 files, on any filesystem.
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Driver;

impl Driver for Qcow2Driver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: NAME.to_owned(),
            aliases: Vec::new(),
            classes: Vec::new(),
            summary: "a directory of qcow2 files: instant clones and snapshots on any filesystem"
                .to_owned(),
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
        let opened = Qcow2Pool::open(pool.name.clone(), directory, catalogue, first_use)?;
        Ok(Arc::new(opened))
    }
}
