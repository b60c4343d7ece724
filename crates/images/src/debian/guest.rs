//! What is in a guest: its packages, our files beside them, and nothing that makes it a
//! particular one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use sistemo_host::directory::FileError;

/// The packages of every image, beyond the essential ones and apt.
///
/// `lz4` packs the initial RAM disk, `libnss-myhostname` resolves the machine's own name without
/// a line in /etc/hosts, `e2fsprogs` grows a volume's filesystem from inside.
pub(super) const PACKAGES: [&str; 21] = [
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libnss-myhostname",
    "linux-image-cloud-amd64",
    "lz4",
    "nano",
    "netbase",
    "openssh-server",
    "openssh-sftp-server",
    "procps",
    "qemu-guest-agent",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
];

struct GuestFile {
    path: &'static str,
    mode: u32,
    content: &'static str,
}

const fn file(path: &'static str, content: &'static str) -> GuestFile {
    GuestFile {
        path,
        mode: 0o644,
        content,
    }
}

/// What dpkg leaves out of each package, in the guest too when it installs more.
const DPKG_OPTIONS: &str = include_str!("guest/dpkg.cfg");

const FILES: [GuestFile; 12] = [
    file("etc/default/locale", include_str!("guest/locale")),
    file("etc/fstab", include_str!("guest/fstab")),
    file("etc/hosts", include_str!("guest/hosts")),
    file(
        "etc/initramfs-tools/conf.d/sistemo",
        include_str!("guest/initramfs.conf"),
    ),
    file(
        "etc/initramfs-tools/modules",
        include_str!("guest/initramfs.modules"),
    ),
    file(
        "etc/ssh/sshd_config.d/sistemo.conf",
        include_str!("guest/sshd.conf"),
    ),
    file(
        "etc/systemd/network/10-sistemo.network",
        include_str!("guest/ethernet.network"),
    ),
    file(
        "etc/systemd/system/serial-getty@ttyS0.service.d/sistemo.conf",
        include_str!("guest/autologin.conf"),
    ),
    file(
        "etc/systemd/system/sistemo-host-keys.service",
        include_str!("guest/host-keys.service"),
    ),
    file(
        "etc/systemd/system/ssh.service.d/sistemo.conf",
        include_str!("guest/ssh.service.conf"),
    ),
    file(
        "etc/systemd/system/systemd-udev-trigger.service.d/sistemo.conf",
        include_str!("guest/udev-trigger.conf"),
    ),
    GuestFile {
        path: "usr/lib/sistemo/host-keys",
        mode: 0o755,
        content: include_str!("guest/host-keys"),
    },
];

/// Units that a virtual machine on user networking does not need. `fstrim.timer` stays: it gives
/// freed space back to the pool. Modules are loaded and kernel filesystems mounted when somebody
/// asks for them. Together with the udev settings this took a third off the processor time from
/// start to SSH (35 s to 24 s, emulated).
const MASKED: [&str; 25] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty@tty1.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "remote-fs.target",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journald-audit.socket",
    "systemd-networkd-wait-online.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-repart.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// Programs that look at each boot for what a virtual machine does not have.
const MASKED_GENERATORS: [&str; 3] = [
    "systemd-bless-boot-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
];

/// Newer than /usr, these tell systemd that nothing waits for the first boot to be brought up to
/// date (systemd.unit(5), `ConditionNeedsUpdate=`).
const UP_TO_DATE: [&str; 2] = ["etc/.updated", "var/.updated"];

const ENABLED: [(&str, &str); 1] = [(
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
    "/lib/systemd/system/systemd-networkd.service",
)];

/// The name server of QEMU's user network, which is at this address unless told otherwise.
const RESOLV_CONF: &str = include_str!("guest/resolv.conf");

/// Where mmdebstrap puts the options that it is given for dpkg, and leaves them.
const BUILD_DPKG_OPTIONS: &str = "etc/dpkg/dpkg.cfg.d/99mmdebstrap";

/// The options that dpkg runs with during the build, from the first package on. It need not wait
/// for the disk after each file: a build that a power cut ends is not used.
pub(super) fn dpkg_options() -> impl Iterator<Item = &'static str> {
    DPKG_OPTIONS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .chain(["force-unsafe-io"])
}

/// Lays out the files that must be in the guest before its packages are installed, with the
/// modes they have there whatever our umask is.
pub(super) fn write_overlay(overlay: &Path) -> Result<(), FileError> {
    make_directories(overlay)?;
    for file in &FILES {
        write(&overlay.join(file.path), file.content, file.mode)?;
    }
    let masks = MASKED
        .iter()
        .map(|unit| (format!("etc/systemd/system/{unit}"), "/dev/null"));
    let masked_generators = MASKED_GENERATORS
        .iter()
        .map(|name| (format!("etc/systemd/system-generators/{name}"), "/dev/null"));
    let enabled = ENABLED
        .iter()
        .map(|(link, target)| ((*link).to_owned(), *target));
    for (link, target) in masks.chain(masked_generators).chain(enabled) {
        let link = overlay.join(link);
        make_parent(&link)?;
        symlink(target, &link).map_err(|error| FileError::new("link", &link, error))?;
    }
    Ok(())
}

/// Takes away what makes an installed system a particular one: host keys, machine-id, host name.
/// Its name server becomes the virtual network's, where the host's was while packages were
/// installed, and its dpkg waits for the disk again.
pub(super) fn remove_identity(tree: &Path) -> Result<(), FileError> {
    let ssh = tree.join("etc/ssh");
    let entries = fs::read_dir(&ssh).map_err(|error| FileError::new("list", &ssh, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| FileError::new("list", &ssh, error))?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            remove(&entry.path())?;
        }
    }
    for path in [
        "etc/hostname",
        "etc/machine-id",
        "etc/resolv.conf",
        BUILD_DPKG_OPTIONS,
    ] {
        remove(&tree.join(path))?;
    }
    let dpkg_options = tree.join("etc/dpkg/dpkg.cfg.d/sistemo");
    write(&dpkg_options, DPKG_OPTIONS, 0o644)?;
    for path in UP_TO_DATE {
        remove(&tree.join(path))?;
        write(&tree.join(path), "", 0o644)?;
    }
    // Empty, not missing: a missing machine-id makes systemd take the boot for the first one and
    // enable every unit again.
    write(&tree.join("etc/machine-id"), "", 0o444)?;
    write(&tree.join("etc/resolv.conf"), RESOLV_CONF, 0o644)
}

fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn make_directories(path: &Path) -> Result<(), FileError> {
    let fail = |error| FileError::new("create directory", path, error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(fail)
}

fn make_parent(path: &Path) -> Result<(), FileError> {
    path.parent().map_or(Ok(()), make_directories)
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), FileError> {
    make_parent(path)?;
    let fail = |error| FileError::new("write", path, error);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(fail)?;
    file.write_all(content.as_bytes()).map_err(fail)?;
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(fail)
}
