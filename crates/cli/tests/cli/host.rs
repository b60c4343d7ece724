//! Hosts that lack something, and users who may not do everything.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sistemo::model::Bytes;
use sistemo_testkit::{LoopFilesystem, LoopKind, Requirement, met};

use crate::environment::{Environment, Ordinary, Ran, binary, ran};

const MIB: u64 = 1 << 20;

/// Runs a line on a host without a program: in a mount namespace where something that is no
/// program lies on top of it. `None` where the tests may not make one.
fn without(program: &str, environment: &Environment, line: &str) -> Option<Ran> {
    if !met(&[Requirement::Root, Requirement::Program("unshare")]) {
        return None;
    }
    let script = r#"
        if hidden=$(command -v "$1"); then mount --bind /dev/null "$hidden" || exit 99; fi
        shift; exec "$@""#;
    let mut command = environment.program("unshare");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
        .args(["-m", "sh", "-c", script, "sh", program])
        .arg(binary());
    let ran = ran(command.args(shlex::split(line).unwrap()));
    let hidden = ran.status != 99 && !ran.stderr.contains("unshare failed");
    assert!(hidden, "cannot hide {program}: {}", ran.stderr);
    Some(ran)
}

#[test]
fn a_missing_program_is_named_with_the_package_that_has_it() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    for (program, package, line) in [
        ("mkfs.ext4", "e2fsprogs", "volume create 1G"),
        ("mkfs.xfs", "xfsprogs", "volume create 1G --fs xfs"),
        ("mkfs.btrfs", "btrfs-progs", "volume create 1G --fs btrfs"),
        (
            "qemu-system-x86_64",
            "qemu-system-x86",
            "machine deploy ./disk.raw --storage 16M",
        ),
        ("mmdebstrap", "mmdebstrap", "image build debian"),
        (
            "mmdebstrap",
            "mmdebstrap",
            "machine deploy debian --no-start",
        ),
        ("ssh-keygen", "openssh-client", "ssh-key"),
    ] {
        let Some(ran) = without(program, &environment, line) else {
            return;
        };
        assert_eq!(ran.status, 1, "{line}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!("{program} is not installed")),
            "{}",
            ran.stderr
        );
        let hint = format!("Hint: sudo apt install {package}\n");
        assert!(ran.stderr.ends_with(&hint), "{}", ran.stderr);
    }
    assert!(environment.volumes().is_empty());
    assert!(environment.machines().is_empty());
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn the_doctor_says_no_where_a_deploy_would_not_work() {
    let environment = Environment::new();
    let Some(ran) = without("qemu-system-x86_64", &environment, "doctor -o json") else {
        return;
    };
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let checks = ran.json();
    let failed: Vec<_> = checks
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["verdict"] == "failed")
        .collect();
    assert!(!failed.is_empty());
    assert!(
        failed.iter().all(|check| check["advice"].is_string()),
        "{failed:?}"
    );
    assert!(
        !environment.data_dir().exists(),
        "the doctor changes nothing"
    );
}

#[test]
fn the_doctor_says_yes_on_this_host() {
    let environment = Environment::new();
    let ran = environment.run("doctor");
    assert_eq!(ran.status, 0, "{}", ran.stdout);
    assert!(ran.stdout.starts_with("CHECK "), "{}", ran.stdout);
}

#[test]
fn an_ordinary_user_needs_no_daemon_and_no_root() {
    let Some(user) = Ordinary::new() else { return };
    let created = user.run("volume create 5G --name pgdata");
    assert_eq!(created.status, 0, "{}", created.stderr);
    let listed = user.run("volume list -o json").json();
    assert_eq!(listed[0]["name"], "pgdata");
    let mode = fs::metadata(user.home().join(".sistemo"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let environment = Environment::new();
    environment.file("file", "");
    for data_dir in ["file", "missing/deeper"] {
        let line = format!("volume create 1G --data-dir {data_dir}");
        let told = environment.refused(1, &line, data_dir);
        assert!(
            told.starts_with("Error: cannot use the data directory"),
            "{told}"
        );
        assert!(
            told.contains("Hint: choose another with --data-dir DIR"),
            "{told}"
        );
    }
    assert!(!environment.home().join("missing").exists());

    let Some(user) = Ordinary::new() else { return };
    let told = user.run("volume create 1G --data-dir /sistemo-of-nobody -o json");
    assert_eq!(told.status, 1);
    assert_eq!(told.error()["code"], "data-directory-unusable");
    assert!(
        told.stderr.contains("/sistemo-of-nobody"),
        "{}",
        told.stderr
    );
}

#[test]
fn a_data_directory_of_a_newer_version_is_refused_and_left_alone() {
    let environment = Environment::new();
    environment.ok("volume list");
    // The user version and the application ID in the header of an SQLite file (fileformat2,
    // section 1.3), as a newer version would write them.
    let path = environment.data_dir().join("sistemo.db");
    let log = environment.data_dir().join("sistemo.db-wal");
    fs::remove_file(&log).unwrap();
    let database = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    database
        .write_all_at(&1_000_000_u32.to_be_bytes(), 60)
        .unwrap();
    database.write_all_at(b"Sist", 68).unwrap();
    let before = fs::read(&path).unwrap();
    environment.refused(1, "volume create 1G", "has schema version 1000000");
    environment.refused(1, "volume list", "has schema version 1000000");
    assert_eq!(environment.run("doctor").status, 1);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn a_full_filesystem_is_told_and_leaves_nothing_behind() {
    if !met(&[Requirement::Root]) {
        return;
    }
    let environment = Environment::new();
    // The catalogue alone takes more.
    let full = LoopFilesystem::new(LoopKind::Tmpfs, Bytes::new(96 << 10));
    let data_dir = full.path().join("data");
    let line = format!("volume create 1G --data-dir {}", data_dir.display());
    let told = environment.refused(1, &line, data_dir.to_str().unwrap());
    assert!(told.starts_with("Error: no space is left"), "{told}");
    let json = environment.run(&format!("{line} -o json"));
    assert_eq!(
        (json.status, &json.error()["code"]),
        (1, &"no-space".into())
    );
    let left = fs::read_dir(data_dir.join("volumes")).into_iter().flatten();
    assert_eq!(left.count(), 0);
}

#[test]
fn on_a_full_filesystem_a_volume_can_still_be_deleted() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let environment = Environment::new();
    let disk = LoopFilesystem::new(LoopKind::Ext4, Bytes::from_mib(48));
    let data_dir = disk.path().join("data");
    let run = |line: &str| environment.run(&format!("{line} --data-dir {}", data_dir.display()));
    for name in ["pgdata", "kept"] {
        let created = run(&format!("volume create 16M --name {name}"));
        assert_eq!(created.status, 0, "{}", created.stderr);
    }
    let reserve = data_dir.join("reserve");
    assert_eq!(fs::metadata(&reserve).unwrap().len(), MIB);
    fill(&disk.path().join("film"));

    let deleted = run("volume delete pgdata -y");
    assert_eq!(deleted.status, 0, "{}", deleted.stderr);
    assert!(!reserve.exists(), "it was needed");
    let listed = run("volume list -o json").json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["name"], "kept");
    assert_eq!(listed[0]["status"], "available");

    fs::remove_file(disk.path().join("film")).unwrap();
    assert_eq!(run("volume list").status, 0);
    assert!(reserve.exists(), "there is room for it again");
}

/// Writes a file until its filesystem has no block left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    sistemo_host::directory::flush(path, &file).unwrap();
}
