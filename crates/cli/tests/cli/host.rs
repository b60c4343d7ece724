//! Hosts that lack something, and users who may not do everything.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;

use crate::environment::{Environment, Ordinary, Ran, binary, ran};

/// Runs a line on a host without a program: in a mount namespace where something that is no
/// program lies on top of it. `None`, and why on standard error, where that is not possible.
fn without(program: &str, environment: &Environment, line: &str) -> Option<Ran> {
    let script = r#"
        hidden=$(command -v "$1") || exit 99
        mount --bind /dev/null "$hidden" || exit 99
        shift; exec "$@""#;
    let mut command = environment.program("unshare");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
        .args(["-m", "sh", "-c", script, "sh", program])
        .arg(binary());
    let ran = ran(command.args(shlex::split(line).unwrap()));
    if ran.status == 1 && ran.stderr.contains("unshare failed") || ran.status == 99 {
        eprintln!("skipped: cannot hide {program}: {}", ran.stderr);
        return None;
    }
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
    let environment = Environment::new();
    let script = r#"
        mount -t tmpfs -o size=96k none "$1" || exit 99
        cd "$1" && shift
        "$@" volume create 1G --data-dir data
        echo "status $?"
        ls data/volumes 2>/dev/null | grep ext4
        exit 0"#;
    fs::create_dir(environment.home().join("full")).unwrap();
    let mut command = environment.program("unshare");
    command
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(environment.home().join("full"));
    let ran = ran(command.arg(binary()));
    if ran.status != 0 {
        eprintln!("skipped: cannot mount a small filesystem: {}", ran.stderr);
        return;
    }
    assert_eq!(ran.stdout, "status 1\n", "{}", ran.stderr);
    assert!(ran.stderr.starts_with("Error: "), "{}", ran.stderr);
}
