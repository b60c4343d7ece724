//! The built-in drivers keep the driver contract, law by law.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Place, laws_hold_for};
use sistemo_pools::file::FileDriver;
use sistemo_pools::{Driver, FilePool, FirstUse, Pool, PoolError};

fn open_file(place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
    let name = "default".parse().unwrap();
    let opened = FilePool::open(name, &place.directory, place.catalogue, FirstUse::Allowed)?;
    Ok(Arc::new(opened))
}

fn file() -> Bench {
    let home = tempfile::tempdir().unwrap();
    let small = SmallPlace::like(home.path());
    Bench::new(home.path(), open_file)
        .with_powers(&FileDriver.info().powers)
        .with_small_place(small)
        .keeping(home)
}

laws_hold_for!(file, open_file, file());
