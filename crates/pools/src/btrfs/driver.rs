//! The `btrfs` driver, as the registry knows it.

use std::path::Path;
use std::sync::Arc;

use sistemo_host::mount::FilesystemKind;
use sistemo_model::CatalogueId;

use super::{BtrfsPool, Writing};
use crate::config::PoolConfig;
use crate::registry::{Driver, DriverInfo, DriverOption, Power, ValueKind};
use crate::{FirstUse, Pool, PoolError, loop_backed};

pub(super) const NAME: &str = "btrfs";

const COMPRESS: &str = "compress";
const IN_PLACE: &str = "nodatacow";

/// A subvolume a volume, on a btrfs.
#[derive(Clone, Copy, Debug)]
pub struct BtrfsDriver;

impl Driver for BtrfsDriver {
    fn info(&self) -> DriverInfo {
        let option = |name: &str, kind, default: Option<&str>, summary: &str| {
            let (name, summary) = (name.to_owned(), summary.to_owned());
            DriverOption {
                name,
                required: false,
                default: default.map(str::to_owned),
                summary,
                kind,
            }
        };
        DriverInfo {
            name: NAME.to_owned(),
            aliases: Vec::new(),
            classes: Vec::new(),
            summary: "a btrfs subvolume a volume: clones and snapshots in one step".to_owned(),
            options: vec![
                DriverOption {
                    summary:
                        "the directory, on a btrfs; its last component is made at the first use"
                            .to_owned(),
                    ..DriverOption::directory()
                },
                option(
                    COMPRESS,
                    ValueKind::Word,
                    None,
                    "how new volumes are compressed: zstd, lzo, zlib or no; else as mounted",
                ),
                option(
                    IN_PLACE,
                    ValueKind::Flag,
                    Some("false"),
                    "new volumes are written in place: no checksums, no compression",
                ),
                DriverOption::size(FilesystemKind::Btrfs),
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
        let writing = writing(pool)?;
        let open = |directory: &Path, first_use| -> Result<Arc<dyn Pool>, PoolError> {
            let name = pool.name.clone();
            let opened = BtrfsPool::open(name, directory, writing, catalogue, first_use)?;
            Ok(Arc::new(opened))
        };
        let size = loop_backed::size_of(pool)?;
        if !loop_backed::is_wanted(size, directory) {
            return open(directory, first_use);
        }
        let plan = loop_backed::Plan {
            pool: &pool.name,
            directory,
            catalogue,
            first_use,
            kind: FilesystemKind::Btrfs,
            size,
        };
        loop_backed::open(&plan, &open)
    }
}

fn writing(pool: &PoolConfig) -> Result<Writing, PoolError> {
    let bad = |option: &str, value: &str, reason: String| PoolError::BadOption {
        pool: pool.name.clone(),
        option: option.to_owned(),
        value: value.to_owned(),
        reason,
    };
    let in_place = pool.options.get(IN_PLACE).filter(|flag| *flag == "true");
    let Some(word) = pool.options.get(COMPRESS) else {
        return Ok(match in_place {
            Some(_) => Writing::InPlace,
            None => Writing::AsMounted,
        });
    };
    let writing: Writing = word
        .parse()
        .map_err(|error: super::NoCompression| bad(COMPRESS, word, error.to_string()))?;
    match (in_place, writing) {
        (None, writing) => Ok(writing),
        // What is written in place is never compressed.
        (Some(_), Writing::Uncompressed) => Ok(Writing::InPlace),
        (Some(flag), _) => {
            let reason =
                format!("what is written in place cannot be compressed, and {COMPRESS} = {word}");
            Err(bad(IN_PLACE, flag, reason))
        }
    }
}
