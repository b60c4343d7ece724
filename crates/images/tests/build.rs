//! Builds a real Debian from the host's mirror, as whoever runs the test and, where that is root,
//! as an ordinary user too, and looks into the filesystem without mounting it.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, also what is not marked as one"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use sistemo_host::directory::Directory;
use sistemo_host::program::Program;
use sistemo_host::system::is_root;
use sistemo_images::{BuildStep, Images};
use sistemo_model::{Image, ImageName};
use sistemo_testkit::{Requirement, met};

/// Where the ordinary user's part of the test finds its data directory.
const DATA_DIR: &str = "SISTEMO_TEST_DATA_DIR";

fn debian() -> ImageName {
    sistemo_images::DEBIAN.parse().unwrap()
}

/// A directory that is not in memory, as /tmp may be: a build needs about 1 GB.
fn home() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

const PROGRAMS: [Requirement; 4] = [
    Requirement::Program("mmdebstrap"),
    Requirement::Program("mkfs.ext4"),
    Requirement::Program("debugfs"),
    Requirement::Program("unshare"),
];

/// One file as `debugfs -R stat` describes it.
struct Inode {
    mode: u32,
    user: u32,
    group: u32,
    size: u64,
}

fn stat(content: &Path, path: &str) -> Option<Inode> {
    let debugfs = Program::find("debugfs").unwrap();
    let output = debugfs
        .args(["-R", &format!("stat {path}")])
        .arg(content)
        .run()
        .unwrap();
    let text = output.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    let value = |key: &str| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1).copied()
    };
    Some(Inode {
        mode: u32::from_str_radix(value("Mode:")?, 8).unwrap(),
        user: value("User:")?.parse().unwrap(),
        group: value("Group:")?.parse().unwrap(),
        size: value("Size:")?.parse().unwrap(),
    })
}

fn read(content: &Path, path: &str) -> String {
    let debugfs = Program::find("debugfs").unwrap();
    let output = debugfs.args(["-R", &format!("cat {path}")]).arg(content);
    output.run().unwrap().text()
}

/// What holds for an image whoever built it.
fn inspect(images: &Images, image: &Image) {
    let content = images.content(image);
    let fsck = Program::find("e2fsck").unwrap();
    fsck.args(["-f", "-n"]).arg(&content).run().unwrap();

    for (path, mode, user, group) in [
        ("/", 0o755, 0, 0),
        ("/etc/passwd", 0o644, 0, 0),
        // Debian's base-passwd gives the group shadow this number everywhere.
        ("/etc/shadow", 0o640, 0, 42),
        ("/tmp", 0o1777, 0, 0),
        ("/etc/fstab", 0o644, 0, 0),
        ("/usr/lib/sistemo/host-keys", 0o755, 0, 0),
        ("/etc/systemd/system", 0o755, 0, 0),
    ] {
        let inode = stat(&content, path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(
            (inode.mode, inode.user, inode.group),
            (mode, user, group),
            "{path}"
        );
    }
    let agent = stat(&content, "/usr/bin/ssh-agent").unwrap();
    assert_eq!((agent.mode, agent.user), (0o2755, 0));
    assert!((100..1000).contains(&agent.group), "{}", agent.group);

    assert_eq!(stat(&content, "/etc/machine-id").unwrap().size, 0);
    for absent in [
        "/etc/hostname",
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_rsa_key",
        "/etc/ssh/ssh_host_ecdsa_key",
        "/root/.ssh/authorized_keys",
        "/etc/apt/apt.conf.d/99mmdebstrap",
        "/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    ] {
        assert!(stat(&content, absent).is_none(), "{absent} is there");
    }
    let password = read(&content, "/etc/shadow");
    assert!(
        password.contains("root:*:"),
        "root's password is not locked"
    );
    assert!(read(&content, "/etc/resolv.conf").contains("nameserver 10.0.2.3"));
    let dpkg = read(&content, "/etc/dpkg/dpkg.cfg.d/sistemo");
    assert!(dpkg.contains("path-exclude=") && !dpkg.contains("force-unsafe-io"));
    assert!(stat(&content, "/usr/sbin/qemu-ga").is_some());
    assert!(stat(&content, "/etc/.updated").is_some());
    assert!(stat(&content, "/etc/initramfs-tools/conf.d/sistemo").is_some());

    let boot = image.boot.as_ref().unwrap();
    let kernel = fs::read(images.kernel(&boot.kernel).unwrap()).unwrap();
    // The magic number of the x86 boot protocol (Documentation/arch/x86/boot.rst).
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
    let initrd = images.kernel(boot.initrd.as_ref().unwrap()).unwrap();
    let initrd = fs::read(initrd).unwrap();
    assert_eq!(initrd[..4], [0x02, 0x21, 0x4c, 0x18], "not lz4");

    let used = images.used_bytes(image).unwrap();
    assert!(used.mib() < 400, "{used} on disk");
    assert_eq!(image.size.mib(), 2048);
    let facts = fs::metadata(&content).unwrap();
    assert_eq!(facts.permissions().mode() & 0o777, 0o600);
    assert_eq!(facts.len(), image.size.get());
}

/// Two processes that want the image at the same time, as far as locks can tell.
fn ensure_twice(data_dir: &Path) -> (Images, Image) {
    let (told, steps) = mpsc::channel();
    let ensure = |told: mpsc::Sender<(usize, BuildStep)>, who: usize| {
        let data_dir = data_dir.to_owned();
        thread::spawn(move || {
            let images = Images::open(&data_dir).unwrap();
            images.ensure_debian(&debian(), &mut |step| told.send((who, step)).unwrap())
        })
    };
    let threads = [ensure(told.clone(), 0), ensure(told, 1)];
    let built = threads.map(|thread| thread.join().unwrap().unwrap());
    assert_eq!(built[0], built[1]);
    let steps: Vec<_> = steps.into_iter().collect();
    let count = |wanted: fn(&BuildStep) -> bool| steps.iter().filter(|(_, s)| wanted(s)).count();
    assert_eq!(count(|step| matches!(step, BuildStep::Waiting { .. })), 1);
    for step in [
        BuildStep::PackageLists,
        BuildStep::Downloading,
        BuildStep::Extracting,
        BuildStep::InstallingEssentials,
        BuildStep::InstallingPackages,
        BuildStep::Cleaning,
        BuildStep::Filesystem,
        BuildStep::Publishing,
    ] {
        let times = steps.iter().filter(|(_, other)| *other == step).count();
        assert_eq!(times, 1, "{step}");
    }
    (Images::open(data_dir).unwrap(), built[0].clone())
}

fn only_the_image_is_left(images: &Images, image: &Image) {
    let content = images.content(image);
    let directory = content.parent().unwrap();
    let mut names: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert_eq!(names, [content.clone(), directory.join("debian.json")]);
}

#[test]
fn a_debian_is_built_once_by_two_and_has_no_identity() {
    if !met(&PROGRAMS) {
        return;
    }
    let home = home();
    // What a killed build leaves.
    let dead = "images/debian-a1b2c3d4-5678-4abc-8ef0-123456789abc.build/tree";
    drop(Images::open(home.path()).unwrap());
    fs::create_dir_all(home.path().join(dead)).unwrap();
    let (images, image) = ensure_twice(home.path());
    only_the_image_is_left(&images, &image);
    inspect(&images, &image);
}

/// Becomes an ordinary user who is in no file of the host: in a mount namespace of its own, copies
/// of passwd(5), group(5) and subuid(5) with one line more lie over the host's.
const AS_AN_ORDINARY_USER: &str = r#"
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind "$1/subuid" /etc/subuid
mount --bind "$1/subuid" /etc/subgid
exec setpriv --reuid 61234 --regid 61234 --clear-groups -- \
    env -i PATH=/usr/bin:/bin "$2" "$3" --ignored --exact the_ordinary_users_part
"#;
const USER: u32 = 61_234;

fn write_account_files(directory: &Path) {
    let with = |file: &str, line: &str| {
        let mut text = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
        text.push_str(line);
        Directory::open(directory)
            .unwrap()
            .replace(file, text.as_bytes())
            .unwrap();
        let readable = fs::Permissions::from_mode(0o644);
        fs::set_permissions(directory.join(file), readable).unwrap();
    };
    with(
        "passwd",
        "sistemo-tester:x:61234:61234::/nonexistent:/bin/sh\n",
    );
    with("group", "sistemo-tester:x:61234:\n");
    with("subuid", "sistemo-tester:1000000:65536\n");
}

#[test]
fn an_ordinary_user_builds_the_same_in_a_home_that_is_closed_to_others() {
    // Only root becomes somebody else, and newuidmap maps the IDs.
    if !met(&[Requirement::Root, Requirement::Program("newuidmap")]) || !met(&PROGRAMS) {
        return;
    }
    let outer = home();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let test = outer.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    let closed = outer.path().join("a home with spaces & 'quotes'");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&closed, Some(USER), Some(USER)).unwrap();
    write_account_files(outer.path());
    let ran = Program::find("unshare")
        .unwrap()
        .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c"])
        .args([AS_AN_ORDINARY_USER, "sh"])
        .arg(outer.path())
        .arg(format!("{DATA_DIR}={}", closed.display()))
        .arg(&test)
        .current_dir(Path::new("/"))
        .run()
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(ran.text().contains("1 passed"), "{}", ran.text());
    // As seen from outside, nothing of the tree that others own has stayed.
    let images = Images::open(&closed).unwrap();
    let image = images.find(&debian()).unwrap();
    only_the_image_is_left(&images, &image);
    assert_eq!(fs::metadata(images.content(&image)).unwrap().uid(), USER);
}

#[test]
#[ignore = "run by an_ordinary_user_builds_the_same_in_a_home_that_is_closed_to_others"]
fn the_ordinary_users_part() {
    let data_dir = PathBuf::from(std::env::var(DATA_DIR).unwrap());
    assert!(!is_root());
    let images = Images::open(&data_dir).unwrap();
    let image = images.ensure_debian(&debian(), &mut |_| {}).unwrap();
    inspect(&images, &image);
}
