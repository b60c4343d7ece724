//! The built-in drivers keep the driver contract, law by law.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use sistemo_conformance::{Bench, laws_hold_for};
use sistemo_pools::{FilePool, FirstUse, Pool};

fn file() -> Bench {
    let home = tempfile::tempdir().unwrap();
    let bench = Bench::new(home.path(), |place| {
        let name = "default".parse().unwrap();
        let opened = FilePool::open(name, &place.directory, place.catalogue, FirstUse::Allowed)?;
        Ok(Arc::new(opened) as Arc<dyn Pool>)
    });
    bench.keeping(home)
}

laws_hold_for!(file, super::file());
