//! The `file-reflink` driver, as the registry knows it.

use std::path::Path;
use std::sync::Arc;

use sistemo_host::mount::FilesystemKind;
use sistemo_model::CatalogueId;

use super::FilePool;
use crate::config::PoolConfig;
use crate::loop_backed::{self, Plan};
use crate::registry::{Driver, DriverInfo, DriverOption, Power, ValueKind};
use crate::{FirstUse, Pool, PoolError};

pub(super) const NAME: &str = "file-reflink";
const SETUP_CHECK: &str = "setup_check";
/// The filesystem that a loop-backed pool makes for itself.
const OWN: FilesystemKind = FilesystemKind::Xfs;

/// Whether a pool that needs reflinks looks for them before its first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupCheck {
    /// Without reflinks there is no pool.
    Do,
    /// Without reflinks there are no clones and no snapshots.
    Skip,
}

/// A directory of sparse files on a filesystem with reflinks.
#[derive(Clone, Copy, Debug)]
pub struct FileReflinkDriver;

impl Driver for FileReflinkDriver {
    fn info(&self) -> DriverInfo {
        DriverInfo {
            name: NAME.to_owned(),
            aliases: Vec::new(),
            // What Qubes OS R4 calls the same thing.
            classes: vec!["qubes.storage.reflink.ReflinkPool".to_owned()],
            summary: "a directory of sparse files that share their data: XFS, btrfs, bcachefs"
                .to_owned(),
            options: vec![
                DriverOption::directory(),
                DriverOption {
                    name: SETUP_CHECK.to_owned(),
                    required: false,
                    default: Some(true.to_string()),
                    summary: "whether a filesystem without reflinks is refused at once".to_owned(),
                    kind: ValueKind::Flag,
                },
                DriverOption::size(OWN),
            ],
            powers: vec![Power::Clone, Power::Snapshot, Power::Resize],
        }
    }

    fn open(
        &self,
        pool: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        let directory = pool.place()?;
        let is_off = |value: &String| *value == false.to_string();
        let setup_check = match pool.options.get(SETUP_CHECK) {
            Some(value) if is_off(value) => SetupCheck::Skip,
            _ => SetupCheck::Do,
        };
        let open = |path: &Path, first_use| -> Result<Arc<dyn Pool>, PoolError> {
            let name = pool.name.clone();
            let opened = FilePool::open_reflink(name, path, catalogue, first_use, setup_check)?;
            Ok(Arc::new(opened))
        };
        let size = loop_backed::size_of(pool)?;
        if !loop_backed::is_wanted(size, directory) {
            return open(directory, first_use);
        }
        let plan = Plan {
            pool: &pool.name,
            directory,
            catalogue,
            first_use,
            kind: OWN,
            size,
        };
        loop_backed::open(&plan, &open)
    }
}
