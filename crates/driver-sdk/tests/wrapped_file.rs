//! The `file` driver keeps the contract also as an executable, and what a driver says reaches
//! whoever asks it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Place, laws_hold_for};
use sistemo_driver_sdk::host::program::{Ended, Program};
use sistemo_driver_sdk::model::CatalogueId;
use sistemo_driver_sdk::pools::external::{ExternalDriver, Limits};
use sistemo_driver_sdk::pools::file::{FileDriver, FilePool};
use sistemo_driver_sdk::{Driver, FirstUse, Keeping, Pool, PoolConfig, PoolError};

/// Examples are built beside the tests.
fn executable() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap();
    built.join("examples/sistemo-driver-wrapped-file")
}

fn driver() -> ExternalDriver {
    ExternalDriver::introduce("wrapped-file", &executable(), Limits::default()).unwrap()
}

fn config(directory: &Path) -> PoolConfig {
    let path = directory.display().to_string();
    PoolConfig {
        name: "default".parse().unwrap(),
        driver: "wrapped-file".to_owned(),
        directory: Some(directory.to_owned()),
        keeping: Keeping::default(),
        options: [("dir_path".to_owned(), path)].into(),
    }
}

fn open(place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
    let config = config(&place.directory);
    driver().open(&config, place.catalogue, FirstUse::Allowed)
}

fn bench() -> Bench {
    let home = tempfile::tempdir().unwrap();
    Bench::new(home.path(), open)
        .with_powers(&driver().info().powers)
        .with_small_place(SmallPlace::like(home.path()))
        .keeping(home)
}

laws_hold_for!(wrapped_file, open, bench());

#[test]
fn the_executable_says_of_itself_what_the_driver_does() {
    let (wrapped, plain) = (driver().info(), FileDriver.info());
    assert_eq!(wrapped.summary, plain.summary);
    assert_eq!(wrapped.option_names(), plain.option_names());
    let powers = plain.powers.iter().map(|power| power.as_str());
    assert!(wrapped.powers.iter().map(|power| power.as_str()).eq(powers));
}

#[test]
fn a_pool_of_the_built_in_driver_becomes_one_of_the_executable_and_back() {
    let home = tempfile::tempdir().unwrap();
    let (path, catalogue) = (home.path().join("pool"), CatalogueId::random());
    let name = config(&path).name;
    let plain = FilePool::open(name, &path, catalogue, FirstUse::Allowed).unwrap();
    let id = "a1b2c3d4-5678-4abc-8ef0-123456789abc".parse().unwrap();
    let text = format!(
        r#"{{"version":1,"id":"{id}","name":"pgdata","size":1048576,"filesystem":"ext4",
            "role":"data","boot":null,"created":"2026-11-22T08:00:00Z"}}"#
    );
    let value = serde_json::from_str(&text).unwrap();
    let description = sistemo_driver_sdk::pools::Description::from_value(&value, id).unwrap();
    let wrapped = driver()
        .open(&config(&path), catalogue, FirstUse::Known)
        .unwrap();
    wrapped.draft(&description).unwrap().commit().unwrap();
    assert_eq!(plain.list().unwrap(), wrapped.list().unwrap());
    assert_eq!(plain.description(id).unwrap(), description);
}

fn ask(request: &str) -> (Option<i32>, String) {
    let Ended { status, stdout, .. } = Program::at(&executable())
        .input(request)
        .run_confined(1 << 20)
        .unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn what_is_not_understood_is_refused() {
    for (request, answer) in [
        (
            "",
            r#"{"error":{"code":"unsupported","message":"the request is not understood: "#,
        ),
        (
            r#"{"protocol":1,"operation":"fly"}"#,
            r#"{"error":{"code":"unsupported","message":"#,
        ),
        (
            r#"{"protocol":2,"operation":"capabilities"}"#,
            r#"{"error":{"code":"failed","message":"version 2 of the protocol is not known, only 1 is"}}"#,
        ),
        (
            r#"{"protocol":1,"operation":"list"}"#,
            r#"{"error":{"code":"failed","message":"the request names no pool"}}"#,
        ),
    ] {
        let (status, answered) = ask(request);
        assert_eq!(status, Some(1), "{answered}");
        assert!(answered.starts_with(answer), "{answered}");
    }
}

#[test]
fn a_request_may_have_fields_that_are_not_known_yet() {
    let (status, answered) = ask(r#"{"protocol":1,"operation":"capabilities","later":true}"#);
    assert_eq!(status, Some(0), "{answered}");
}
