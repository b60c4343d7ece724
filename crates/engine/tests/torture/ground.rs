//! Where pools are put: filesystems of the kinds that drivers are made for.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sistemo::model::Bytes;
use sistemo_host::directory::Directory;
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

/// What each filesystem has room for.
const SIZE: Bytes = Bytes::from_mib(1 << 10);

/// A driver, and the kind of filesystem that a pool of it is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) driver: &'static str,
    kind: LoopKind,
}

/// Filesystems for the pools of one test.
pub(crate) struct Ground {
    spots: Vec<(Spot, LoopFilesystem)>,
    /// The data directory is in memory: what it costs to flush is no matter here.
    memory: LoopFilesystem,
    made: Cell<usize>,
}

/// A data directory and empty directories for its pools.
pub(crate) struct Plot {
    pub(crate) data_dir: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) pools: Vec<(&'static str, PathBuf)>,
}

impl Spot {
    pub(crate) fn new(driver: &'static str, kind: LoopKind) -> Spot {
        Spot { driver, kind }
    }

    /// After how many operations all that was touched is looked at. Each look at a volume of an
    /// external driver starts that several times.
    pub(crate) fn between_looks(self) -> usize {
        if external(self.driver).is_some() {
            10
        } else {
            1
        }
    }

    fn needs(self) -> Vec<Requirement> {
        let program = match self.kind {
            LoopKind::Ext4 => "mkfs.ext4",
            LoopKind::Xfs => "mkfs.xfs",
            LoopKind::Btrfs => "mkfs.btrfs",
            LoopKind::Tmpfs => "mount",
        };
        let interpreter = (self.driver == "pybtrfs").then_some(Requirement::Program("python3"));
        [Requirement::Root, Requirement::Program(program)]
            .into_iter()
            .chain(interpreter)
            .collect()
    }
}

impl Ground {
    /// `None` where this host lacks something, which is then said.
    pub(crate) fn new(spots: &[Spot]) -> Option<Ground> {
        let needs: Vec<_> = spots.iter().flat_map(|spot| spot.needs()).collect();
        if !met(&needs) {
            return None;
        }
        Some(Ground {
            spots: spots
                .iter()
                .map(|spot| (*spot, LoopFilesystem::new(spot.kind, SIZE)))
                .collect(),
            memory: LoopFilesystem::new(LoopKind::Tmpfs, SIZE),
            made: Cell::new(0),
        })
    }

    /// After how many operations all that was touched is looked at.
    pub(crate) fn between_looks(&self) -> usize {
        let looks = self.spots.iter().map(|(spot, _)| spot.between_looks());
        looks.max().unwrap_or(1)
    }

    /// A part of it where nothing is yet.
    pub(crate) fn plot(&self) -> Plot {
        let number = self.made.get();
        if let Some(before) = number.checked_sub(1) {
            // What was there is of no use any more; what cannot go so only takes its room.
            for (_, filesystem) in &self.spots {
                let _ = fs::remove_dir_all(filesystem.path().join(format!("pool-{before}")));
            }
        }
        self.made.set(number + 1);
        let data_dir = self.memory.path().join(format!("data-{number}"));
        let (_, _) = Directory::create(&data_dir).unwrap();
        let (drivers, _) = Directory::create(&data_dir.join("drivers")).unwrap();
        let scratch = data_dir.join("scratch");
        let (_, _) = Directory::create(&scratch).unwrap();
        for (spot, _) in &self.spots {
            if let Some(executable) = external(spot.driver) {
                let name = format!("sistemo-driver-{}", spot.driver);
                symlink(executable, drivers.path().join(name)).unwrap();
            }
        }
        let pools = self.spots.iter().map(|(spot, filesystem)| {
            let place = filesystem.path().join(format!("pool-{number}"));
            (spot.driver, place)
        });
        Plot {
            data_dir,
            scratch,
            pools: pools.collect(),
        }
    }
}

/// The executable of a driver that is not built in.
///
/// # Panics
/// Where it was not built: `cargo build --workspace --examples`, as `cargo test` does too.
fn external(driver: &str) -> Option<PathBuf> {
    let path = match driver {
        "pybtrfs" => Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../examples/drivers/sistemo-driver-pybtrfs"),
        "wrapped-file" => {
            let test = std::env::current_exe().unwrap();
            let built = test.ancestors().nth(2).unwrap();
            built.join("examples/sistemo-driver-wrapped-file")
        }
        _ => return None,
    };
    assert!(path.exists(), "{} was not built", path.display());
    Some(path)
}
