//! Whether a deploy would work on this host, and what to do where it would not.

use std::path::Path;

use serde::Serialize;
use sistemo_catalog::Catalogue;
use sistemo_host::directory::Directory;
use sistemo_host::{program, system};
use sistemo_model::{Accelerator, Bytes};
use sistemo_pools::{ConfiguredPool, FirstUse, Registry, StorageConf};
use sistemo_vmm::Vmm;
use sistemo_vmm::qemu::Qemu;

use crate::error::MonitorError;
use crate::pools::usable;
use crate::settings::{Setting, Settings};

/// Less room than this does not hold an image and a root volume made from it.
const ROOM_FOR_A_DEPLOY: Bytes = Bytes::from_mib(1024);
/// A root volume of the default size can fill up to this.
const COMFORTABLE_ROOM: Bytes = Bytes::from_mib(5 * 1024);

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A deploy works, but not as well as it could, or something else does not.
    Warning,
    /// A deploy would not work.
    Failed,
}

impl Verdict {
    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed => "failed",
        }
    }
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        let (verdict, advice) = (Verdict::Warning, Some(advice.into()));
        Check {
            name,
            verdict,
            found: found.into(),
            advice,
        }
    }

    fn failed(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Failed,
            ..Check::warning(name, found, advice)
        }
    }
}

/// Looks at everything a deploy needs. Works also where [`Engine::open`](crate::Engine::open)
/// does not, and changes nothing.
#[must_use]
pub fn examine(settings: &Settings) -> Vec<Check> {
    let data_dir = settings.data_dir.value.as_path();
    let mut checks = vec![check_data_directory(data_dir), check_catalogue(data_dir)];
    checks.push(check_space(data_dir));
    checks.push(check_pools(settings));
    checks.extend(check_vmm());
    checks.push(check_program(
        "mkfs.ext4",
        "making volumes",
        "e2fsprogs",
        Verdict::Failed,
    ));
    checks.push(check_program(
        "ssh",
        "reaching machines",
        "openssh-client",
        Verdict::Failed,
    ));
    checks.push(check_program(
        "ssh-keygen",
        "the SSH key",
        "openssh-client",
        Verdict::Failed,
    ));
    checks.push(check_program(
        "mmdebstrap",
        "building images",
        "mmdebstrap",
        Verdict::Failed,
    ));
    checks.push(check_subordinate_ids());
    checks.push(check_program(
        "qemu-img",
        "importing qcow2 files",
        "qemu-utils",
        Verdict::Warning,
    ));
    checks.push(check_program(
        "resize2fs",
        "growing filesystems",
        "e2fsprogs",
        Verdict::Warning,
    ));
    checks.push(check_program(
        "mkfs.xfs",
        "XFS volumes",
        "xfsprogs",
        Verdict::Warning,
    ));
    checks.push(check_program(
        "mkfs.btrfs",
        "btrfs volumes",
        "btrfs-progs",
        Verdict::Warning,
    ));
    checks
}

/// The nearest directory that exists: the data directory is made at its first use.
fn nearest(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
}

fn check_data_directory(path: &Path) -> Check {
    const NAME: &str = "data directory";
    let shown = path.display();
    let existing = nearest(path);
    let parent = path.parent().unwrap_or(path);
    if existing != path && existing != parent {
        let advice = format!("create {}", parent.display());
        return Check::failed(NAME, format!("{} does not exist", parent.display()), advice);
    }
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        let advice = "make it writable, or choose another with --data-dir";
        return Check::failed(
            NAME,
            format!("{} is not writable", existing.display()),
            advice,
        );
    }
    let first = if existing == path {
        ""
    } else {
        ", made at the first use"
    };
    Check::ok(NAME, format!("{shown}{first}"))
}

fn check_catalogue(data_dir: &Path) -> Check {
    const NAME: &str = "catalogue";
    let there = Directory::open(data_dir).and_then(|directory| directory.contains("sistemo.db"));
    if !there.unwrap_or(false) {
        return Check::ok(NAME, "none yet");
    }
    let advice = "restore sistemo.db from a backup; the volumes themselves are untouched";
    match Catalogue::open(data_dir).and_then(|catalogue| catalogue.check()) {
        Ok(findings) if findings.is_empty() => Check::ok(NAME, "no damage found"),
        Ok(findings) => Check::failed(NAME, findings.join("; "), advice),
        Err(error) => Check::failed(NAME, MonitorError::texts(&error).join(": "), advice),
    }
}

fn check_space(data_dir: &Path) -> Check {
    const NAME: &str = "space";
    let place = nearest(data_dir);
    match system::space(place) {
        Err(error) => Check::warning(NAME, error.to_string(), "look at the filesystem"),
        Ok(space) => {
            let free = Bytes::new(space.free);
            let found = format!("{free} free where {} is", place.display());
            let advice = "make room: an image and a root volume take about 1 GB";
            if free < ROOM_FOR_A_DEPLOY {
                Check::failed(NAME, found, advice)
            } else if free < COMFORTABLE_ROOM {
                Check::warning(NAME, found, advice)
            } else {
                Check::ok(NAME, found)
            }
        }
    }
}

/// Looks at the pools as far as that can be done from outside: what is configured, and whether the
/// disks of those that were used are there.
fn check_pools(settings: &Settings) -> Check {
    const NAME: &str = "pools";
    let registry = Registry::built_in();
    let conf = match StorageConf::load(&settings.surroundings(), &registry) {
        Ok(conf) => conf,
        Err(error) => {
            return Check::failed(
                NAME,
                MonitorError::texts(&error).join(": "),
                "mend that file",
            );
        }
    };
    let default = &settings.default_pool;
    let mut wrong = Vec::new();
    if conf.pool(&default.value).is_none() {
        let Setting { value, origin } = default;
        wrong.push(format!(
            "the `default_pool` {value} from {origin} does not exist"
        ));
    }
    let mut default_works = wrong.is_empty();
    let catalogue = catalogue(&settings.data_dir.value);
    for pool in conf.pools() {
        if let Err(reason) = check_pool(settings, &registry, &conf, pool, catalogue.as_ref()) {
            default_works &= pool.title != default.value.as_str();
            wrong.push(format!("{}: {reason}", pool.title));
        }
    }
    let advice = "mount the disk that is missing, or mend storage.conf; `sistemo pool list`";
    if !default_works {
        Check::failed(NAME, wrong.join("; "), advice)
    } else if !wrong.is_empty() {
        Check::warning(NAME, wrong.join("; "), advice)
    } else {
        let titles: Vec<_> = conf
            .pools()
            .iter()
            .map(|pool| pool.title.as_str())
            .collect();
        Check::ok(NAME, titles.join(", "))
    }
}

fn check_pool(
    settings: &Settings,
    registry: &Registry,
    conf: &StorageConf,
    pool: &ConfiguredPool,
    catalogue: Option<&Catalogue>,
) -> Result<(), String> {
    let shown = |error: &dyn std::error::Error| MonitorError::texts(error).join(": ");
    let config = pool.config.as_ref().map_err(|fault| shown(fault))?;
    let known = catalogue.and_then(|c| c.read(|session| session.known_pools()).ok());
    let known = known.unwrap_or_default();
    let config = usable(conf, &known, &config.name, &settings.data_dir.value)
        .map_err(|error| shown(&error))?;
    match catalogue {
        Some(catalogue) if known.iter().any(|known| known.name == config.name) => registry
            .open(&config, catalogue.id(), FirstUse::Known)
            .and_then(|pool| pool.probe())
            .map_err(|error| shown(&error)),
        _ => Ok(()),
    }
}

/// The catalogue, where there is one that can be used.
fn catalogue(data_dir: &Path) -> Option<Catalogue> {
    let there = Directory::open(data_dir).and_then(|directory| directory.contains("sistemo.db"));
    there
        .unwrap_or(false)
        .then(|| Catalogue::open(data_dir).ok())
        .flatten()
}

fn check_vmm() -> Vec<Check> {
    match Qemu::new().probe() {
        Err(error) => {
            let found = MonitorError::texts(&error).join(": ");
            vec![Check::failed(
                "QEMU",
                found,
                "sudo apt install qemu-system-x86",
            )]
        }
        Ok(probe) => {
            let accelerator = match probe.accelerator {
                Accelerator::Kvm => Check::ok("KVM", probe.reason),
                Accelerator::Tcg => {
                    let advice = "guests run about ten times slower; enable virtualization in \
                                  the firmware, and add yourself to the group kvm";
                    Check::warning("KVM", probe.reason, advice)
                }
            };
            vec![
                Check::ok("QEMU", format!("version {}", probe.version)),
                accelerator,
            ]
        }
    }
}

fn check_program(name: &'static str, purpose: &str, package: &str, if_missing: Verdict) -> Check {
    match program::locate(name) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check {
            verdict: if_missing,
            ..Check::failed(
                name,
                format!("not installed; needed for {purpose}"),
                format!("sudo apt install {package}"),
            )
        },
    }
}

/// An ordinary user builds an image in a user namespace, which takes a range of other IDs
/// (subuid(5)).
fn check_subordinate_ids() -> Check {
    const NAME: &str = "subordinate IDs";
    if system::is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    match sistemo_images::check_subordinate_ids() {
        Ok(()) => Check::ok(NAME, "found"),
        Err(error) => {
            let advice = format!(
                "sudo apt install uidmap && sudo usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 {}",
                system::user_name()
            );
            Check::failed(NAME, MonitorError::texts(&error).join(": "), advice)
        }
    }
}
