//! Disks that nobody uses, shown as raw files.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::directory::Directory;
use sistemo_host::lock::Lock;
use sistemo_host::program::Program;
use sistemo_model::{Access, Bytes};
use sistemo_testkit::{Requirement, met};
use sistemo_vmm::{DiskLocation, RawAccess, VmmError};

use crate::layers::{content, create, create_over};
use crate::rig::LIMIT;

const SIZE: Bytes = Bytes::from_mib(64);
/// Where it is set, the test of a killed process is that process.
const PLACE_OF_KILLED: &str = "SISTEMO_TEST_PLACE";

fn can_run() -> bool {
    met(&[
        Requirement::Program("qemu-img"),
        Requirement::Program("qemu-storage-daemon"),
        Requirement::Program("fusermount3"),
    ])
}

/// A directory with a volume's lock and a place for its raw file.
struct Place {
    path: PathBuf,
    directory: Directory,
}

impl Place {
    fn new(home: &Path) -> Place {
        // Beside every other character that options or JSON could trip over.
        let path = home.join("a, \"b\" = json:{ä}");
        let (directory, _) = Directory::create(&path).unwrap();
        Place { path, directory }
    }

    fn lock(&self) -> Lock {
        Lock::acquire(&self.lock_path(), "volume resize pgdata", LIMIT).unwrap()
    }

    fn lock_path(&self) -> PathBuf {
        self.path.with_extension("lock")
    }

    fn open(&self, disk: &Path, access: Access) -> Result<RawAccess, VmmError> {
        let location = DiskLocation::Qcow2File(disk.to_owned());
        RawAccess::open(&location, access, &self.directory, "raw", &self.lock())
    }

    fn assert_nothing_is_left(&self) {
        drop(self.lock());
        assert_eq!(self.directory.files().unwrap(), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let home = self.path.parent().unwrap().to_str().unwrap();
        assert!(!mounts.contains(home), "{mounts}");
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let program = Program::find(program).unwrap().args(arguments);
    program.arg(path).run().unwrap();
}

#[test]
fn programs_work_on_a_qcow2_file_as_on_a_raw_one() {
    if !can_run() || !met(&[Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let place = Place::new(home.path());
    let (lower, upper) = (home.path().join("lower"), home.path().join("upper"));
    create(&lower, SIZE);
    let access = place.open(&lower, Access::ReadWrite).unwrap();
    run("mkfs.ext4", &["-q", "-F"], access.path());
    assert!(Lock::is_held(&place.lock_path()).unwrap());
    access.close().unwrap();
    place.assert_nothing_is_left();

    let larger = Bytes::from_mib(128);
    create_over(&upper, &lower, larger);
    let access = place.open(&upper, Access::ReadWrite).unwrap();
    assert_eq!(fs::metadata(access.path()).unwrap().len(), larger.get());
    run("e2fsck", &["-f", "-p"], access.path());
    run("resize2fs", &[], access.path());
    access.close().unwrap();
    place.assert_nothing_is_left();
    let grown = home.path().join("grown");
    File::create(&grown)
        .unwrap()
        .write_all_at(&content(&upper), 0)
        .unwrap();
    run("e2fsck", &["-f", "-n"], &grown);
    assert_eq!(content(&lower).len() as u64, SIZE.get());
}

#[test]
fn what_is_opened_to_read_cannot_be_written() {
    if !can_run() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let place = Place::new(home.path());
    let disk = home.path().join("disk");
    create(&disk, SIZE);
    let access = place.open(&disk, Access::ReadOnly).unwrap();
    assert!(
        fs::read(access.path())
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    let written = File::options()
        .write(true)
        .open(access.path())
        .and_then(|file| file.write_all_at(b"x", 0));
    assert!(written.is_err());
    drop(access);
    place.assert_nothing_is_left();
}

#[test]
fn what_is_raw_already_is_shown_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let place = Place::new(home.path());
    for location in [
        DiskLocation::RawFile("/a/file".into()),
        DiskLocation::BlockDevice("/a/device".into()),
    ] {
        let lock = place.lock();
        let access =
            RawAccess::open(&location, Access::ReadWrite, &place.directory, "raw", &lock).unwrap();
        assert_eq!(access.path(), location.path());
        assert!(access.held().is_none());
        access.close().unwrap();
    }
}

#[test]
fn what_is_no_qcow2_file_is_refused_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let place = Place::new(home.path());
    let disk = home.path().join("disk");
    let refused = |reason: &str| {
        let error = place.open(&disk, Access::ReadWrite).unwrap_err();
        assert!(matches!(error, VmmError::Show { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot show {}", disk.display())));
        assert!(text.contains(reason), "{text}");
        place.assert_nothing_is_left();
    };
    refused("No such file");
    // A raw file stays one, also where it is called something else.
    File::create(&disk).unwrap().set_len(SIZE.get()).unwrap();
    refused("not in qcow2 format");
    // What a killed process left is in nobody's way.
    fs::remove_file(&disk).unwrap();
    create(&disk, SIZE);
    File::create(place.path.join("raw")).unwrap();
    let access = place.open(&disk, Access::ReadWrite).unwrap();
    access.close().unwrap();
    place.assert_nothing_is_left();
}

/// Opens a disk, lets a program write to it in a second, and waits to be killed.
fn be_killed(home: &Path) {
    let place = Place::new(home);
    let lock = place.lock();
    let location = DiskLocation::Qcow2File(home.join("disk"));
    let access =
        RawAccess::open(&location, Access::ReadWrite, &place.directory, "raw", &lock).unwrap();
    let script = "exec 9<>\"$1\"; touch \"$2\"; sleep 1; echo written >&9";
    let writer = Program::find("sh")
        .unwrap()
        .args(["-c", script, "sh"])
        .arg(access.path())
        .arg(home.join("open"))
        .inherit(&lock)
        .unwrap()
        .inherit(&access.held().unwrap())
        .unwrap();
    let _writer = writer.spawn().unwrap();
    thread::sleep(LIMIT);
}

#[test]
fn a_killed_process_leaves_the_disk_to_the_program_it_started_and_then_to_nobody() {
    if let Some(home) = env::var_os(PLACE_OF_KILLED) {
        be_killed(Path::new(&home));
        return;
    }
    if !can_run() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let place = Place::new(home.path());
    let disk = home.path().join("disk");
    create(&disk, SIZE);
    let own_name = thread::current().name().unwrap().to_owned();
    let mut killed = Program::at(&env::current_exe().unwrap())
        .args(["--exact", &own_name])
        .env(PLACE_OF_KILLED, home.path())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !home.path().join("open").exists() {
        assert!(started.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(5));
    }
    killed.kill();
    // The writer has the volume's lock as long as it writes, and the daemon until all is in.
    place.assert_nothing_is_left();
    assert!(content(&disk).starts_with(b"written\n"));
}
