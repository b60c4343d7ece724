//! External drivers: the two in `examples/drivers` keep the contract, and whatever another one
//! does wrong is told and harms nothing.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and one moves away what a driver works on"
)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Place, laws_hold_for};
use sistemo_host::Changed;
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_host::program::Program;
use sistemo_host::sparse::Extent;
use sistemo_model::{
    Access, Bytes, CatalogueId, Filesystem, Role, SnapshotName, Timestamp, VolumeId,
};
use sistemo_pools::external::{Limits, Untrusted, in_words};
use sistemo_pools::{
    Cost, Description, Driver, DriverFault, ExternalDriver, FirstUse, Flaw, Found, Keeping,
    LiveDisk, LiveDiskError, Location, Origin, Pool, PoolConfig, PoolError, Power, Progress,
    Registry, Way,
};
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

const MIB: u64 = 1 << 20;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/drivers")
        .join(format!("sistemo-driver-{name}"))
}

fn config(driver: &str, directory: &Path) -> PoolConfig {
    let path = directory.display().to_string();
    PoolConfig {
        name: "mine".parse().unwrap(),
        driver: driver.to_owned(),
        directory: Some(directory.to_owned()),
        keeping: Keeping::default(),
        options: [("dir_path".to_owned(), path)].into(),
    }
}

mod contract {
    use super::*;

    fn driver(name: &str) -> ExternalDriver {
        ExternalDriver::introduce(name, &example(name), Limits::default()).unwrap()
    }

    fn open(name: &str, place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
        let mut config = config(name, &place.directory);
        config.name = "default".parse().unwrap();
        driver(name).open(&config, place.catalogue, FirstUse::Allowed)
    }

    fn open_tiny(place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
        open("tiny", place)
    }

    fn open_pybtrfs(place: &Place) -> Result<Arc<dyn Pool>, PoolError> {
        open("pybtrfs", place)
    }

    fn on_any_filesystem() -> Bench {
        let home = tempfile::tempdir().unwrap();
        Bench::new(home.path(), open_tiny)
            .with_powers(&driver("tiny").info().powers)
            .with_small_place(SmallPlace::like(home.path()))
            .keeping(home)
    }

    fn on_btrfs() -> Option<Bench> {
        let home = btrfs()?;
        let bench = Bench::new(home.path(), open_pybtrfs)
            .with_powers(&driver("pybtrfs").info().powers)
            .with_small_place(SmallPlace::like(home.path()));
        Some(bench.keeping(home))
    }

    laws_hold_for!(tiny, open_tiny, on_any_filesystem());
    laws_hold_for!(pybtrfs, open_pybtrfs, on_btrfs());
}

fn btrfs() -> Option<LoopFilesystem> {
    let needed = ["mkfs.btrfs", "btrfs", "python3", "mount"].map(Requirement::Program);
    (met(&[Requirement::Root]) && met(&needed))
        .then(|| LoopFilesystem::new(LoopKind::Btrfs, Bytes::from_mib(1024)))
}

/// A driver that a test writes, and its pool.
struct Workshop {
    home: tempfile::TempDir,
    catalogue: CatalogueId,
}

/// Short enough for a test to wait, long enough for a shell to start on a busy machine.
const LIMITS: Limits = Limits {
    introduction: Duration::from_secs(30),
    ordinary: Duration::from_secs(30),
    copying: Duration::from_secs(30),
    // A program that another test starts meanwhile has our locks open for an instant.
    patience: Duration::from_secs(10),
};

const SHORT: Duration = Duration::from_secs(2);

impl Workshop {
    fn new() -> Workshop {
        Workshop {
            home: tempfile::tempdir().unwrap(),
            catalogue: CatalogueId::random(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Makes an executable of a shell script. Another process writes it: where this one had it
    /// open, a test that starts a program meanwhile would keep it from being run.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("sistemo-driver-{name}"));
        let source = self.path("source");
        let mut file = Program::find("dd").unwrap();
        file = file.arg(format!("of={}", source.display()));
        file.input(format!("#!/bin/sh\n{text}\n")).run().unwrap();
        Program::find("install")
            .unwrap()
            .args(["-m", "755"])
            .args([&source, &path])
            .run()
            .unwrap();
        path
    }

    /// A driver that does what `cases` of a shell's `case` say, and else what `tiny` does.
    fn like_tiny(&self, cases: &str) -> ExternalDriver {
        self.like_tiny_with(cases, LIMITS)
    }

    fn like_tiny_with(&self, cases: &str, limits: Limits) -> ExternalDriver {
        let tiny = example("tiny").canonicalize().unwrap();
        let text = format!(
            "id=$SISTEMO_VOLUME home='{}'\ncase $SISTEMO_OPERATION in\n{cases}\nesac\nexec '{}'",
            self.home.path().display(),
            tiny.display()
        );
        let path = self.script("odd", &text);
        ExternalDriver::introduce("odd", &path, limits).unwrap()
    }

    fn try_open(&self, driver: &ExternalDriver) -> Result<Arc<dyn Pool>, PoolError> {
        let config = config("odd", &self.path("pool"));
        driver.open(&config, self.catalogue, FirstUse::Allowed)
    }

    fn pool(&self, cases: &str) -> Arc<dyn Pool> {
        self.try_open(&self.like_tiny(cases)).unwrap()
    }

    /// The same pool, with a driver that does no wrong.
    fn sound(&self) -> Arc<dyn Pool> {
        let tiny = ExternalDriver::introduce("tiny", &example("tiny"), LIMITS).unwrap();
        self.try_open(&tiny).unwrap()
    }
}

fn description(mib: u64) -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: id.short().parse().unwrap(),
        size: Bytes::from_mib(mib),
        filesystem: Filesystem::Ext4,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    }
}

fn volume(pool: &dyn Pool, mib: u64) -> Description {
    let description = description(mib);
    pool.draft(&description).unwrap().commit().unwrap();
    description
}

fn write(pool: &dyn Pool, id: VolumeId, data: &[u8], offset: u64) {
    let mut content = pool.content(id, Access::ReadWrite).unwrap();
    content.write_at(data, offset).unwrap();
    content.flush().unwrap();
}

fn read(pool: &dyn Pool, id: VolumeId, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    let content = pool.content(id, Access::ReadOnly).unwrap();
    content.read_at(&mut buffer, offset).unwrap();
    buffer
}

/// Makes sure that an error names driver, operation and pool, and says `words`.
fn assert_told(error: &PoolError, operation: &str, words: &str) {
    let told = in_words(error);
    let place = format!("driver odd failed at `{operation}` in pool mine: ");
    assert!(told.starts_with(&place), "{told}");
    assert!(told.contains(words), "`{words}` is not in: {told}");
}

mod wrong {
    use super::*;

    #[test]
    fn a_driver_that_crashes_is_told_with_its_last_words() {
        let shop = Workshop::new();
        let pool = shop.pool("grow) echo 'out of luck' >&2; kill -SEGV $$ ;;");
        let made = volume(&*pool, 1);
        let error = pool.grow(made.id, Bytes::from_mib(2)).unwrap_err();
        assert_told(&error, "grow", "SIGSEGV");
        assert_told(&error, "grow", "out of luck");
        assert_eq!(shop.sound().verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn a_driver_that_hangs_is_killed_with_its_children() {
        let shop = Workshop::new();
        let cases = "remove) sleep 600 & echo $! >$home/child; sleep 600 ;;";
        let made = volume(&*shop.sound(), 1);
        let limits = Limits {
            copying: SHORT,
            ..LIMITS
        };
        let pool = shop.try_open(&shop.like_tiny_with(cases, limits)).unwrap();
        let error = pool.remove(made.id).unwrap_err();
        assert_told(&error, "remove", "did not finish within 2 s");
        let child = fs::read_to_string(shop.path("child")).unwrap();
        let child = ProcessIdentity::of(child.trim().parse().unwrap()).unwrap();
        let gone = |child: ProcessIdentity| child.wait_gone(Some(Duration::from_secs(10)));
        assert!(child.is_none_or(|child| gone(child).unwrap()));
        let sound = shop.sound();
        assert_eq!(sound.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn what_is_no_answer_is_shown() {
        for (printed, shown) in [
            ("echo hello", "it answered `hello`"),
            ("true", "it answered ``"),
            ("echo '{}'", "missing field `found`"),
            ("echo '{\"found\":null,\"more\":1}'", "unknown field `more`"),
            (
                "echo '{\"found\":null}{\"found\":null}'",
                "trailing characters",
            ),
            ("printf '{\"found\":'", "EOF while parsing"),
            ("printf '\\377\\033[2J'", "\\u{1b}[2J"),
            (
                "echo '{\"error\":{\"code\":\"full\",\"message\":\"x\"}}'",
                "unknown field `error`",
            ),
            ("echo '{\"found\":{\"state\":\"volume\"}}'", "missing field"),
        ] {
            let shop = Workshop::new();
            let pool = shop.pool(&format!("inspect) {printed}; exit 0 ;;"));
            let error = pool.find(VolumeId::random()).unwrap_err();
            assert_told(&error, "inspect", shown);
        }
    }

    #[test]
    fn an_end_without_a_reason_is_told() {
        for (cases, status) in [
            ("exit 1", "exit status: 1"),
            ("echo '{\"found\":null}'; exit 1", "exit status: 1"),
            (
                "echo '{\"error\":{\"code\":\"odd\",\"message\":\"x\"}}'; exit 1",
                "exit status: 1",
            ),
            (
                "echo '{\"error\":{\"code\":\"full\",\"message\":\"x\"}}'; exit 2",
                "exit status: 2",
            ),
        ] {
            let shop = Workshop::new();
            let pool = shop.pool(&format!("inspect) {cases} ;;"));
            let error = pool.find(VolumeId::random()).unwrap_err();
            assert_told(&error, "inspect", status);
        }
    }

    #[test]
    fn a_driver_that_prints_without_end_is_killed() {
        let shop = Workshop::new();
        let pool = shop.pool("inspect) exec yes ;;");
        let error = pool.find(VolumeId::random()).unwrap_err();
        assert_told(&error, "inspect", "printed more than 1048576 bytes");
    }

    #[test]
    fn an_answer_for_another_volume_is_refused() {
        let shop = Workshop::new();
        let made = volume(&*shop.sound(), 1);
        let cases = format!("inspect) SISTEMO_VOLUME={} ;;", made.id);
        let pool = shop.pool(&cases);
        let error = pool.find(VolumeId::random()).unwrap_err();
        assert_told(
            &error,
            "inspect",
            &format!("answered for volume {}", made.id),
        );
        assert!(pool.find(made.id).unwrap().is_some());
    }

    #[test]
    fn a_volume_that_is_listed_twice_is_refused() {
        let shop = Workshop::new();
        let made = volume(&*shop.sound(), 1);
        let one = format!("{{\"state\":\"remains\",\"volume\":\"{}\"}}", made.id);
        let pool = shop.pool(&format!(
            "list) echo '{{\"found\":[{one},{one}]}}'; exit ;;"
        ));
        let error = pool.list().unwrap_err();
        assert_told(&error, "list", &format!("listed volume {} twice", made.id));
    }

    #[test]
    fn a_path_that_is_not_absolute_is_refused_and_the_volume_not_made() {
        let shop = Workshop::new();
        let cases = "create) '/bin/true'; echo '{\"location\":{\"kind\":\"raw-file\",\"path\":\"a/b\"}}'; exit ;;";
        let pool = shop.pool(cases);
        let error = pool.draft(&description(1)).unwrap_err();
        assert_told(&error, "create", "`a/b`, which is not absolute");
        assert_eq!(shop.sound().list().unwrap(), []);
    }

    #[test]
    fn what_is_not_as_the_driver_says_is_found_out() {
        let shop = Workshop::new();
        let pool = shop.pool("create) SISTEMO_SIZE=512 ;;\ngrow) echo '{}'; exit ;;");
        let error = pool.draft(&description(1)).unwrap_err();
        assert_told(
            &error,
            "create",
            "the volume has 512 bytes instead of 1048576",
        );
        assert_eq!(pool.list().unwrap(), [], "nothing is left of it");
        let made = volume(&*shop.sound(), 1);
        let error = pool.grow(made.id, Bytes::from_mib(3)).unwrap_err();
        assert_told(&error, "grow", "has 1048576 bytes instead of 3145728");

        let odd = "{\"size\":10,\"used\":11,\"free\":0}";
        let pool = shop.pool(&format!("usage) echo '{odd}'; exit ;;"));
        assert_told(&pool.usage().unwrap_err(), "usage", "11 bytes as used");
    }

    #[test]
    fn a_location_that_is_something_else_is_not_opened() {
        let shop = Workshop::new();
        let made = volume(&*shop.sound(), 1);
        let data = shop.sound().facts(made.id).unwrap().path;
        fs::rename(&data, data.with_file_name("moved")).unwrap();
        std::os::unix::fs::symlink("moved", &data).unwrap();
        let error = shop.sound().content(made.id, Access::ReadOnly).unwrap_err();
        assert!(in_words(&error).contains("as a raw file"), "{error}");

        let qcow2 = shop.pool(
            "create) '/bin/true'; echo '{\"location\":{\"kind\":\"qcow2-file\",\"path\":\"/x\"}}'; exit ;;",
        );
        let mut draft = qcow2.draft(&description(1)).unwrap();
        assert_eq!(draft.raw_path(), None);
        let error = draft.content().unwrap_err();
        assert_told(&error, "create", "qcow2");
    }

    #[test]
    fn a_power_that_is_only_claimed_is_told() {
        let shop = Workshop::new();
        let claims = "capabilities) echo '{\"protocol\":1,\"summary\":\"x\",\"always_open\":true,\
                      \"powers\":[\"clone\",\"snapshot\"]}'; exit ;;";
        let pool = shop.pool(claims);
        let made = volume(&*pool, 1);
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let clones = pool.clones().unwrap();
        // It does not say what a clone costs: then it may be a copy.
        assert_eq!(clones.clone_cost(), Cost::Copy);
        let error = clones.clone_volume(origin, &description(1), &mut |_, _| {});
        assert_told(
            &error.unwrap_err(),
            "clone",
            "it claims to clone but answered",
        );
        let snapshots = pool.snapshots().unwrap();
        let error = snapshots.snapshots(made.id).unwrap_err();
        assert_told(
            &error,
            "snapshots",
            "it claims to keep snapshots but answered",
        );

        let plain = shop.sound();
        assert!(plain.clones().is_none() && plain.snapshots().is_none());
        assert!(plain.own_filesystem().is_none());
    }

    #[test]
    fn a_clone_that_is_not_what_it_was_to_be_is_removed() {
        let shop = Workshop::new();
        let cases = "capabilities) echo '{\"protocol\":1,\"summary\":\"x\",\"always_open\":true,\
                     \"powers\":[\"clone\"]}'; exit ;;\n\
                     clone) SISTEMO_OPERATION=create SISTEMO_SIZE=4096 \
                     ${0%odd}tiny >/dev/null; echo '{\"way\":\"copied\"}'; exit ;;";
        std::os::unix::fs::symlink(
            example("tiny").canonicalize().unwrap(),
            shop.path("sistemo-driver-tiny"),
        )
        .unwrap();
        let pool = shop.pool(cases);
        let (made, new) = (volume(&*pool, 1), description(1));
        let origin = Origin {
            volume: made.id,
            snapshot: None,
        };
        let error = pool
            .clones()
            .unwrap()
            .clone_volume(origin, &new, &mut |_, _| {});
        assert_told(&error.unwrap_err(), "clone", "has 4096 bytes instead of");
        assert_eq!(pool.find(new.id).unwrap(), None);
        assert_eq!(pool.verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn capabilities_that_make_no_sense_are_refused() {
        for (capabilities, reason) in [
            (
                r#"{"protocol":2,"summary":"x"}"#,
                "it speaks version 2 of the protocol, not 1",
            ),
            (r#"{"protocol":1,"summary":""}"#, "summary"),
            (
                r#"{"protocol":1,"summary":"x","powers":["fly"]}"#,
                "unknown variant `fly`",
            ),
            (
                r#"{"protocol":1,"summary":"x","options":[{"name":"dir_path","summary":"x","kind":"path"}]}"#,
                "dir_path is an option of every pool",
            ),
            (
                r#"{"protocol":1,"summary":"x","options":[{"name":"trash_keep","summary":"x","kind":"period"}]}"#,
                "trash_keep is an option of every pool",
            ),
            (
                r#"{"protocol":1,"summary":"x","options":[{"name":"A b","summary":"x","kind":"word"}]}"#,
                "no option can be called `A b`",
            ),
            (
                r#"{"protocol":1,"summary":"x","options":[{"name":"a","summary":"x","kind":"word"},{"name":"a","summary":"x","kind":"word"}]}"#,
                "option a is there twice",
            ),
            (
                r#"{"protocol":1,"summary":"x","options":[{"name":"a","summary":"x","kind":"word","required":true,"default":"x"}]}"#,
                "option a is required and has a default",
            ),
        ] {
            let shop = Workshop::new();
            let path = shop.script("odd", &format!("echo '{capabilities}'"));
            let fault = ExternalDriver::introduce("odd", &path, LIMITS).unwrap_err();
            assert!(in_words(&fault).contains(reason), "{}", in_words(&fault));
        }
    }

    #[test]
    fn an_executable_that_anybody_can_change_is_not_run_any_more() {
        let shop = Workshop::new();
        let pool = shop.pool("");
        let path = shop.path("sistemo-driver-odd");
        fs::set_permissions(&path, Permissions::from_mode(0o757)).unwrap();
        let error = pool.list().unwrap_err();
        assert_told(&error, "list", "anybody can write to");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_told(&pool.list().unwrap_err(), "list", "is not executable");
        fs::remove_file(&path).unwrap();
        assert_told(&pool.list().unwrap_err(), "list", "cannot look at");
    }

    #[test]
    fn an_error_of_the_protocol_is_the_one_of_the_contract() {
        fn of(error: &PoolError) -> &'static str {
            match error {
                PoolError::AlreadyThere { .. } => "already-there",
                PoolError::NoSuchVolume { .. } => "no-such-volume",
                PoolError::Full { .. } => "full",
                PoolError::ReadOnly { .. } => "read-only",
                PoolError::BadSize { .. } => "bad-size",
                PoolError::TooLarge { .. } => "too-large",
                PoolError::Unsuited { .. } => "unsuited",
                PoolError::Unavailable { .. } => "unavailable",
                PoolError::Damaged { .. } => "damaged",
                PoolError::Driver { .. } => "driver",
                other => panic!("{other}"),
            }
        }
        let shop = Workshop::new();
        let pool = shop.pool(
            "create) printf '{\"error\":{\"code\":\"%s\",\"message\":\"so it is\"}}' \
             \"$(cat $home/code)\"; exit 1 ;;",
        );
        for (code, expected) in [
            ("already-there", "already-there"),
            ("no-such-volume", "no-such-volume"),
            ("full", "full"),
            ("read-only", "read-only"),
            ("bad-size", "bad-size"),
            ("too-large", "too-large"),
            ("unsuited", "unsuited"),
            ("unavailable", "unavailable"),
            ("damaged", "damaged"),
            ("unsupported", "driver"),
            ("failed", "driver"),
            ("no-such-snapshot", "driver"),
            ("snapshot-there", "driver"),
        ] {
            File::create(shop.path("code")).unwrap();
            Program::find("tee")
                .unwrap()
                .arg(shop.path("code"))
                .input(code)
                .run()
                .unwrap();
            let error = pool.draft(&description(1)).unwrap_err();
            assert_eq!(of(&error), expected, "{error}");
            let wordless = ["already-there", "no-such-volume", "bad-size"].contains(&code);
            assert!(wordless || in_words(&error).contains("so it is"), "{error}");
        }
    }
}

mod calls {
    use super::*;

    #[test]
    fn a_driver_is_told_everything_twice_and_nothing_of_ours() {
        let shop = Workshop::new();
        let pool = shop.pool(
            "describe) env >$home/env; cat >$home/stdin; pwd >$home/pwd; \
             ls -l /proc/self/fd | grep -c sistemo-locks >$home/locks;;",
        );
        let made = volume(&*pool, 1);
        let read = |name: &str| fs::read_to_string(shop.path(name)).unwrap();
        assert_eq!(read("pwd"), "/\n");
        assert_eq!(read("locks"), "1\n");
        let request: serde_json::Value = serde_json::from_str(&read("stdin")).unwrap();
        assert_eq!(request["protocol"], 1);
        assert_eq!(request["operation"], "describe");
        assert_eq!(request["pool"], "mine");
        assert_eq!(request["volume"], made.id.to_string());
        assert_eq!(request["catalogue"], shop.catalogue.to_string());
        assert_eq!(request["description"]["name"], made.name.as_str());
        let directory = shop.path("pool").display().to_string();
        assert_eq!(request["options"]["dir_path"], directory);

        let text = read("env");
        let mut lines: Vec<_> = text.lines().collect();
        // What the shell itself sets.
        lines.retain(|line| {
            !["PWD=", "OLDPWD=", "_=", "SHLVL="]
                .iter()
                .any(|s| line.starts_with(s))
        });
        lines.sort_unstable();
        let description = request["description"].to_string();
        let id = made.id;
        assert_eq!(
            lines,
            [
                "LC_ALL=C",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                &format!("SISTEMO_CATALOGUE={}", shop.catalogue),
                &format!("SISTEMO_DESCRIPTION={description}"),
                "SISTEMO_OPERATION=describe",
                &format!("SISTEMO_OPTION_dir_path={directory}"),
                "SISTEMO_POOL=mine",
                "SISTEMO_PROTOCOL=1",
                &format!("SISTEMO_VOLUME={id}"),
            ]
        );
    }

    #[test]
    fn a_call_waits_for_what_an_earlier_one_left_running() {
        let shop = Workshop::new();
        let cases = "grow) sleep 600 >/dev/null 2>&1 & echo $! >$home/child ;;";
        let limits = Limits {
            patience: SHORT,
            ..LIMITS
        };
        let pool = shop.try_open(&shop.like_tiny_with(cases, limits)).unwrap();
        let sound = shop.sound();
        let (made, other) = (volume(&*sound, 1), volume(&*sound, 1));
        assert_eq!(
            pool.grow(made.id, Bytes::from_mib(2)).unwrap(),
            Changed::Yes
        );
        let error = pool.remove(made.id).unwrap_err();
        assert_told(&error, "remove", "an earlier call for the same volume");
        assert_told(&error, "remove", &format!("driver odd: grow {}", made.id));
        // Whoever took its lock lives, so whoever looks need not wait, nor who works on another.
        assert_eq!(pool.verify(made.id, Bytes::from_mib(2)).unwrap(), []);
        if other.id.short()[5..] != made.id.short()[5..] {
            assert_eq!(pool.remove(other.id).unwrap(), Changed::Yes);
        }
        let child = fs::read_to_string(shop.path("child")).unwrap();
        let child = ProcessIdentity::of(child.trim().parse().unwrap());
        let child = child.unwrap().unwrap();
        child.end(Ending::Kill).unwrap();
        assert!(child.wait_gone(Some(Duration::from_secs(10))).unwrap());
        assert_eq!(sound.remove(made.id).unwrap(), Changed::Yes);
    }

    #[test]
    fn a_driver_is_not_run_on_a_directory_without_the_marker() {
        let shop = Workshop::new();
        let pool = shop.pool("list) : >$home/ran ;;");
        let made = volume(&*pool, 1);
        fs::rename(shop.path("pool"), shop.path("unmounted")).unwrap();
        fs::create_dir(shop.path("pool")).unwrap();
        for error in [
            pool.list().unwrap_err(),
            pool.remove(made.id).unwrap_err(),
            pool.probe().unwrap_err(),
        ] {
            assert!(matches!(error, PoolError::NoMarker { .. }), "{error}");
        }
        assert!(!shop.path("ran").exists());
        assert_eq!(fs::read_dir(shop.path("pool")).unwrap().count(), 0);
    }

    #[test]
    fn a_first_use_that_comes_to_nothing_leaves_nothing() {
        let shop = Workshop::new();
        let refuses = shop.like_tiny(
            "setup) echo '{\"error\":{\"code\":\"unsuited\",\"message\":\"not here\"}}'; exit 1 ;;",
        );
        let error = shop.try_open(&refuses).unwrap_err();
        assert!(matches!(error, PoolError::Unsuited { .. }), "{error}");
        assert!(!shop.path("pool").exists());
        fs::create_dir(shop.path("pool")).unwrap();
        shop.try_open(&refuses).unwrap_err();
        assert_eq!(fs::read_dir(shop.path("pool")).unwrap().count(), 0);
        // A pool that was there stays one.
        let made = volume(&*shop.sound(), 1);
        shop.try_open(&refuses).unwrap_err();
        assert_eq!(shop.sound().verify(made.id, made.size).unwrap(), []);
    }

    #[test]
    fn what_a_killed_call_left_is_no_volume_and_is_removed() {
        let shop = Workshop::new();
        let create = "create) mkdir \"$SISTEMO_OPTION_dir_path/$id.new\"; kill -9 $$ ;;";
        let pool = shop.pool(create);
        let error = pool.draft(&description(1)).unwrap_err();
        assert_told(&error, "create", "SIGKILL");
        assert_eq!(pool.list().unwrap(), [], "it was tidied up after");

        let pool = shop.pool(&format!("{create}\nremove) kill -9 $$ ;;"));
        let wanted = description(1);
        let error = pool.draft(&wanted).unwrap_err();
        assert_told(&error, "create", "SIGKILL");
        let sound = shop.sound();
        assert_eq!(sound.list().unwrap(), [Found::Draft { id: wanted.id }]);
        assert_eq!(
            sound.verify(wanted.id, wanted.size).unwrap(),
            [Flaw::Missing]
        );
        assert_eq!(sound.remove(wanted.id).unwrap(), Changed::Yes);
        assert_eq!(sound.list().unwrap(), []);
    }
}

/// A driver whose volumes are block devices while they are open.
const LOOP_DEVICES: &str = r#"
device() { losetup --noheadings --output NAME --associated "$1"; }
data=$SISTEMO_OPTION_dir_path/$SISTEMO_VOLUME/data
case $SISTEMO_OPERATION in
capabilities)
    echo '{"protocol":1,"summary":"volumes on loop devices"}'
    exit ;;
create)
    "$TINY" >/dev/null || exit
    SISTEMO_OPERATION=open exec "$0" ;;
open)
    [ -n "$(device "$data")" ] || losetup --find "$data"
    printf '{"location":{"kind":"block-device","path":"%s"}}\n' $(device "$data")
    exit ;;
close)
    for open in $(device "$data"); do losetup --detach $open; done
    echo '{}'
    exit ;;
esac
exec "$TINY"
"#;

#[test]
fn a_volume_on_a_block_device_is_read_and_written() {
    if !met(&[Requirement::Root, Requirement::Program("losetup")]) {
        return;
    }
    let shop = Workshop::new();
    let tiny = example("tiny").canonicalize().unwrap();
    let path = shop.script(
        "odd",
        &LOOP_DEVICES.replace("$TINY", &tiny.display().to_string()),
    );
    let driver = ExternalDriver::introduce("odd", &path, LIMITS).unwrap();
    let pool = shop.try_open(&driver).unwrap();

    let wanted = description(8);
    let mut draft = pool.draft(&wanted).unwrap();
    let device = draft.raw_path().unwrap().to_owned();
    assert!(device.metadata().unwrap().file_type().is_block_device());
    let source = tempfile::tempfile().unwrap();
    source.set_len(5 * MIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&source, b"data", 4 * MIB).unwrap();
    draft.content().unwrap().write_at(b"old", 7 * MIB).unwrap();
    draft.fill_from(&source, &mut |_, _| {}).unwrap();
    draft.commit().unwrap();

    let opened = pool.open(wanted.id, Access::ReadWrite).unwrap();
    assert!(matches!(&opened, Location::BlockDevice(_)), "{opened:?}");
    assert_eq!(pool.open(wanted.id, Access::ReadOnly).unwrap(), opened);
    assert_eq!(read(&*pool, wanted.id, 4 * MIB, 5), b"data\0");
    assert_eq!(read(&*pool, wanted.id, 7 * MIB, 3), [0; 3]);

    let mut content = pool.content(wanted.id, Access::ReadWrite).unwrap();
    assert_eq!(content.size(), wanted.size);
    content.write_at(&vec![7; 1 << 20], 0).unwrap();
    let (offset, length) = (513, 100_000);
    content.make_hole(Extent { offset, length }).unwrap();
    content.flush().unwrap();
    let mut buffer = vec![0; 1 << 20];
    content.read_at(&mut buffer, 0).unwrap();
    let end = 513 + 100_000;
    assert!(buffer[..513].iter().all(|byte| *byte == 7));
    assert!(buffer[513..end].iter().all(|byte| *byte == 0));
    assert!(buffer[end..].iter().all(|byte| *byte == 7));
    // A device cannot tell what it holds nothing of.
    let all = Extent {
        offset: 0,
        length: wanted.size.get(),
    };
    assert_eq!(content.extents().unwrap(), [all]);
    for offset in [wanted.size.get() - 1, u64::MAX] {
        assert!(content.make_hole(Extent { offset, length: 2 }).is_err());
        assert!(content.write_at(b"xx", offset).is_err());
    }
    drop(content);
    let mut content = pool.content(wanted.id, Access::ReadOnly).unwrap();
    assert!(content.make_hole(all).is_err());
    drop(content);

    pool.close(wanted.id).unwrap();
    pool.close(wanted.id).unwrap();
    assert_eq!(pool.remove(wanted.id).unwrap(), Changed::Yes);
}

mod powers {
    use super::*;

    struct NoDisk;

    impl LiveDisk for NoDisk {
        fn file(&mut self) -> Result<PathBuf, LiveDiskError> {
            panic!("the protocol has no words for this")
        }

        fn switch_to(&mut self, _: &Path) -> Result<(), LiveDiskError> {
            panic!("the protocol has no words for this");
        }

        fn flatten(&mut self, _: Progress<'_>) -> Result<(), LiveDiskError> {
            panic!("the protocol has no words for this");
        }
    }

    fn nothing(_: u64, _: u64) {}

    #[test]
    fn pybtrfs_clones_volumes_and_keeps_snapshots() {
        let Some(home) = btrfs() else {
            return;
        };
        let driver = ExternalDriver::introduce("pybtrfs", &example("pybtrfs"), LIMITS).unwrap();
        assert_eq!(driver.info().powers, [Power::Clone, Power::Snapshot]);
        let config = config("pybtrfs", &home.path().join("pool"));
        let pool = driver
            .open(&config, CatalogueId::random(), FirstUse::Allowed)
            .unwrap();
        let (clones, snapshots) = (pool.clones().unwrap(), pool.snapshots().unwrap());
        assert_eq!(clones.clone_cost(), Cost::Instant);
        assert_eq!(snapshots.snapshot_cost(), Cost::Instant);

        let made = volume(&*pool, 8);
        let id = made.id;
        write(&*pool, id, b"first", 0);
        let names: [SnapshotName; 3] = ["a.new", &"b".repeat(63), "c+".trim_end_matches('+')]
            .map(|name| name.parse().unwrap());
        let [one, two, three] = &names;
        let taken =
            snapshots.take_snapshot(id, one, Timestamp::now(), Some(&mut NoDisk), &mut nothing);
        assert_eq!(taken.unwrap(), Way::Subvolume);
        let again = snapshots
            .take_snapshot(id, one, Timestamp::now(), None, &mut nothing)
            .unwrap_err();
        assert!(matches!(again, PoolError::SnapshotThere { .. }), "{again}");
        let _ = pool.grow(id, Bytes::from_mib(16)).unwrap();
        write(&*pool, id, b"second", 12 * MIB);
        snapshots
            .take_snapshot(id, two, Timestamp::now(), None, &mut nothing)
            .unwrap();
        write(&*pool, id, b"third", 0);
        snapshots
            .take_snapshot(id, three, Timestamp::now(), None, &mut nothing)
            .unwrap();
        let listed = snapshots.snapshots(id).unwrap();
        assert!(listed.iter().map(|s| &s.name).eq(&names), "{listed:?}");
        assert_eq!(listed[0].size, Bytes::from_mib(8));
        assert_eq!(listed[1].size, Bytes::from_mib(16));
        assert_eq!(pool.list().unwrap().len(), 1);

        let kept = snapshots.snapshot_content(id, two).unwrap();
        let mut buffer = [0; 6];
        kept.read_at(&mut buffer, 12 * MIB).unwrap();
        assert_eq!(&buffer, b"second");
        kept.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"first\0");

        // A clone of a snapshot, larger than it; a clone of the volume; both go their own way.
        let (large, plain) = (description(32), description(16));
        let origin = |snapshot| Origin {
            volume: id,
            snapshot,
        };
        let way = clones.clone_volume(origin(Some(one)), &large, &mut nothing);
        assert_eq!(way.unwrap(), Way::Subvolume);
        clones
            .clone_volume(origin(None), &plain, &mut nothing)
            .unwrap();
        assert_eq!(read(&*pool, large.id, 0, 5), b"first");
        assert_eq!(pool.verify(large.id, large.size).unwrap(), []);
        assert_eq!(snapshots.snapshots(large.id).unwrap(), []);
        write(&*pool, plain.id, b"clone", 0);
        let error = clones
            .clone_volume(origin(None), &plain, &mut nothing)
            .unwrap_err();
        assert!(matches!(error, PoolError::AlreadyThere { .. }), "{error}");
        let error = clones.clone_volume(origin(None), &description(15), &mut nothing);
        assert!(
            matches!(error, Err(PoolError::SourceTooLarge { .. })),
            "{error:?}"
        );

        for _ in 0..2 {
            snapshots.revert(id, one, &mut nothing).unwrap();
            assert_eq!(read(&*pool, id, 0, 5), b"first");
            assert_eq!(pool.description(id).unwrap().size, Bytes::from_mib(8));
            assert_eq!(pool.verify(id, Bytes::from_mib(8)).unwrap(), []);
            write(&*pool, id, b"later", 0);
        }
        assert_eq!(snapshots.snapshots(id).unwrap(), listed);
        assert_eq!(snapshots.delete_snapshot(id, two).unwrap(), Changed::Yes);
        assert_eq!(snapshots.delete_snapshot(id, two).unwrap(), Changed::No);
        let error = snapshots.revert(id, two, &mut nothing).unwrap_err();
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");
        let error = snapshots.snapshot_content(id, two).unwrap_err();
        assert!(matches!(error, PoolError::NoSuchSnapshot { .. }), "{error}");

        assert_eq!(pool.remove(id).unwrap(), Changed::Yes);
        let error = snapshots.snapshots(id).unwrap_err();
        assert!(matches!(error, PoolError::NoSuchVolume { .. }), "{error}");
        assert_eq!(read(&*pool, plain.id, 0, 5), b"clone");
        assert_eq!(read(&*pool, large.id, 0, 5), b"first");
        assert_eq!(pool.list().unwrap().len(), 2);
        let left = fs::read_dir(home.path().join("pool")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        let ours = |name: &&std::ffi::OsString| !name.to_string_lossy().starts_with(".sistemo");
        assert_eq!(left.iter().filter(ours).count(), 2, "{left:?}");
    }

    #[test]
    fn pybtrfs_says_where_it_cannot_be() {
        if !met(&[
            Requirement::Program("python3"),
            Requirement::Program("btrfs"),
        ]) {
            return;
        }
        let shop = Workshop::new();
        let driver = ExternalDriver::introduce("pybtrfs", &example("pybtrfs"), LIMITS).unwrap();
        let error = shop.try_open(&driver).unwrap_err();
        assert!(matches!(error, PoolError::Unsuited { .. }), "{error}");
        assert!(!shop.path("pool").exists());
    }
}

mod registry {
    use super::*;

    const CAPABILITIES: &str = r#"{"protocol":1,"summary":"mine","options":[{"name":"colour","default":"red","summary":"x","kind":"word"}]}"#;

    fn own_names() -> Vec<String> {
        Registry::built_in().names()
    }

    #[test]
    fn a_driver_is_found_by_its_name_and_by_its_path() {
        let shop = Workshop::new();
        let path = shop.script("mine", &format!("echo '{CAPABILITIES}'"));
        let registry = Registry::built_in().searching(vec![shop.home.path().to_owned()]);
        assert_eq!(
            registry.names(),
            [own_names(), vec!["mine".to_owned()]].concat()
        );
        let info = registry.by_name("mine").unwrap();
        assert_eq!(
            (info.name.as_str(), info.summary.as_str()),
            ("mine", "mine")
        );
        assert_eq!(info.option_names(), ["dir_path", "colour"]);
        assert!(info.option("dir_path").unwrap().required);
        assert!(registry.knows_option("colour") && !registry.knows_option("taste"));

        let class = path.display().to_string();
        let info = registry.by_class(&class).unwrap();
        assert_eq!(info.name, class);
        assert_eq!(registry.by_name(&class), Some(info));
        assert_eq!(registry.by_class("mine"), None, "a name is no path");
        assert_eq!(Registry::built_in().by_class(&class), None);
        assert_eq!(registry.drivers().len(), own_names().len() + 1);
    }

    #[test]
    fn a_pool_is_opened_by_either() {
        let home = tempfile::tempdir().unwrap();
        let directories = vec![example("tiny").parent().unwrap().to_owned()];
        let registry = Registry::built_in().searching(directories);
        let catalogue = CatalogueId::random();
        let path = example("tiny").display().to_string();
        for (driver, first_use) in [("tiny", FirstUse::Allowed), (&path, FirstUse::Known)] {
            let config = config(driver, &home.path().join("pool"));
            let pool = registry.open(&config, catalogue, first_use).unwrap();
            assert_eq!(pool.driver(), driver);
            pool.probe().unwrap();
        }
        let config = config("nosuch", home.path());
        let error = registry.open(&config, catalogue, FirstUse::Allowed);
        assert!(
            matches!(error, Err(PoolError::NoDriver { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn an_executable_takes_no_name_of_a_built_in_driver() {
        let shop = Workshop::new();
        for name in ["file", "xen"] {
            shop.script(name, &format!("echo '{CAPABILITIES}'"));
        }
        let registry = Registry::built_in().searching(vec![shop.home.path().to_owned()]);
        assert_eq!(registry.names(), own_names());
        assert_eq!(registry.by_name("xen").unwrap().name, "file");
    }

    #[test]
    fn a_driver_that_cannot_be_used_is_listed_and_hides_no_other() {
        let shop = Workshop::new();
        shop.script("broken", "echo oops >&2; exit 7");
        shop.script("good", &format!("echo '{CAPABILITIES}'"));
        let registry = Registry::built_in().searching(vec![shop.home.path().to_owned()]);
        let drivers = registry.drivers();
        let summaries: Vec<_> = drivers.iter().map(|d| (&*d.name, &*d.summary)).collect();
        assert_eq!(
            summaries[own_names().len()..],
            [
                (
                    "broken",
                    "cannot be used: it ended with exit status: 7: oops"
                ),
                ("good", "mine")
            ]
        );
        assert_eq!(registry.by_name("broken"), None);
        let why = registry.named("broken").unwrap().unwrap_err();
        assert!(why.to_string().contains("exit status: 7"), "{why}");
        let config = config("broken", &shop.path("pool"));
        let error = registry
            .open(&config, shop.catalogue, FirstUse::Allowed)
            .unwrap_err();
        assert!(matches!(error, PoolError::UnusableDriver { .. }), "{error}");
        assert!(!shop.path("pool").exists());
    }

    #[test]
    fn a_driver_is_asked_once_what_it_can() {
        let shop = Workshop::new();
        let asked = shop.path("asked").display().to_string();
        shop.script("mine", &format!("echo >>'{asked}'; echo '{CAPABILITIES}'"));
        shop.script("broken", &format!("echo >>'{asked}'; exit 1"));
        let registry = Registry::built_in().searching(vec![shop.home.path().to_owned()]);
        assert_eq!(registry.names().len(), own_names().len() + 2);
        assert!(
            !shop.path("asked").exists(),
            "a name is told without running it"
        );
        for _ in 0..3 {
            assert!(registry.by_name("mine").is_some());
            assert!(registry.by_name("broken").is_none());
            assert_eq!(registry.drivers().len(), own_names().len() + 2);
        }
        assert_eq!(fs::read_to_string(&asked).unwrap().lines().count(), 2);
    }

    #[test]
    fn storage_conf_names_a_driver_by_name_or_class() {
        use sistemo_pools::{StorageConf, Surroundings};

        let shop = Workshop::new();
        shop.script("broken", "exit 7");
        let class = shop.script("mine", &format!("echo '{CAPABILITIES}'"));
        let file = shop.path("storage.conf");
        let text = format!(
            "[a]\ndriver = mine\ndir_path = /a\ncolour = blue\n\
             [b]\nclass = {}\ndriver = nosuch\ndir_path = /b\n\
             [c]\ndriver = nosuch\ndir_path = /c\n\
             [d]\ndriver = broken\ndir_path = /d\n\
             [e]\nclass = /no/such\ndir_path = /e\n\
             [f]\ndriver = mine\n\
             [g]\ndriver = mine\ndir_path = /g\nsize = 1\n",
            class.display()
        );
        let _ = Program::find("tee")
            .unwrap()
            .arg(&file)
            .input(text)
            .run()
            .unwrap();
        let surroundings = Surroundings {
            named: Some(file.clone()),
            data_dir: shop.path("data"),
            system: shop.path("none"),
            home: None,
        };
        let registry = Registry::built_in().searching(vec![shop.home.path().to_owned()]);
        let conf = StorageConf::load(&surroundings, &registry).unwrap();
        let pool = |name: &str| conf.pool(&name.parse().unwrap()).unwrap().config.clone();
        let a = pool("a").unwrap();
        assert_eq!((&*a.driver, &*a.options["colour"]), ("mine", "blue"));
        assert_eq!(a.directory, Some(PathBuf::from("/a")));
        let b = pool("b").unwrap();
        assert_eq!(
            (b.driver, &*b.options["colour"]),
            (class.display().to_string(), "red")
        );
        let told = |name: &str| {
            let told = in_words(&pool(name).unwrap_err());
            told.replace(&file.display().to_string(), "FILE")
        };
        assert_eq!(
            told("c"),
            "FILE:10: [c] driver: there is no driver `nosuch`; the drivers are file, file-reflink, btrfs, qcow2, broken, mine"
        );
        assert_eq!(
            told("d"),
            "FILE:13: [d] driver: driver `broken` cannot be used: it ended with exit status: 7"
        );
        assert!(
            told("e").contains("driver `/no/such` cannot be used: cannot look at"),
            "{}",
            told("e")
        );
        assert_eq!(
            told("f"),
            "FILE:18: [f] dir_path: driver mine needs the option"
        );
        assert!(
            told("g").ends_with("its options are dir_path, colour, revisions_to_keep, trash_keep"),
            "{}",
            told("g")
        );
    }

    #[test]
    fn what_must_not_be_run_is_not_asked() {
        let shop = Workshop::new();
        let ran = shop.path("ran").display().to_string();
        let path = shop.script("mine", &format!(": >'{ran}'; echo '{CAPABILITIES}'"));
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        let fault = ExternalDriver::introduce("mine", &path, LIMITS).unwrap_err();
        let untrusted = matches!(
            fault,
            DriverFault::Untrusted(Untrusted::WritableByAll { .. })
        );
        assert!(untrusted, "{fault}");
        assert!(!shop.path("ran").exists());
    }
}
