//! Whether a deploy would work on this host, and what to do where it would not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use sistemo_catalog::{
    CatalogError, Catalogue, Disposable, ImageCopy, Intent, IntentId, KnownPool,
};
use sistemo_host::directory::Directory;
use sistemo_host::{program, system};
use sistemo_model::{Accelerator, Bytes, CatalogueId, Lifecycle, PoolName, Role, Volume, VolumeId};
use sistemo_pools::{ConfiguredPool, FirstUse, Found, Pool, Registry, StorageConf, marker};
use sistemo_vmm::Vmm;
use sistemo_vmm::qemu::Qemu;

use crate::error::causes;
use crate::pools::usable;
use crate::settings::{Setting, Settings};

/// Less room than this does not hold an image and a root volume made from it.
const ROOM_FOR_A_DEPLOY: Bytes = Bytes::from_mib(1024);
/// A root volume of the default size can fill up to this.
const COMFORTABLE_ROOM: Bytes = Bytes::from_mib(5 * 1024);

/// A program that is started, the Debian package it is in, what for, and what its absence means.
struct Needed {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
    if_missing: Verdict,
}

const fn needed(program: &'static str, package: &'static str, purpose: &'static str) -> Needed {
    Needed {
        program,
        package,
        purpose,
        if_missing: Verdict::Failed,
    }
}

const fn useful(program: &'static str, package: &'static str, purpose: &'static str) -> Needed {
    Needed {
        program,
        package,
        purpose,
        if_missing: Verdict::Warning,
    }
}

const NEEDED: [Needed; 18] = [
    needed("mkfs.ext4", "e2fsprogs", "making volumes"),
    needed("ssh", "openssh-client", "reaching machines"),
    needed("ssh-keygen", "openssh-client", "the SSH key"),
    needed("mmdebstrap", "mmdebstrap", "building images"),
    needed("unshare", "util-linux", "building images"),
    useful("qemu-img", "qemu-utils", "importing qcow2 files"),
    useful("e2fsck", "e2fsprogs", "growing and checking filesystems"),
    useful("resize2fs", "e2fsprogs", "growing filesystems"),
    useful(
        "qemu-storage-daemon",
        "qemu-system-common",
        "growing and checking filesystems in qcow2 files",
    ),
    useful(
        "fusermount3",
        "fuse3",
        "growing and checking filesystems in qcow2 files",
    ),
    useful("dumpe2fs", "e2fsprogs", "trimming volumes"),
    useful("mkfs.xfs", "xfsprogs", "XFS volumes"),
    useful("xfs_repair", "xfsprogs", "checking XFS volumes"),
    useful("xfs_db", "xfsprogs", "trimming XFS volumes"),
    useful("mkfs.btrfs", "btrfs-progs", "btrfs volumes"),
    useful("btrfs", "btrfs-progs", "checking btrfs volumes"),
    // Only an ordinary user's build needs these, which has a check of its own.
    useful("newuidmap", "uidmap", "building images as an ordinary user"),
    useful("newgidmap", "uidmap", "building images as an ordinary user"),
];

const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// The Debian package that a program which this product starts is in.
#[must_use]
pub fn package_of(program: &str) -> Option<&'static str> {
    let others = NEEDED.iter().map(|needed| (needed.program, needed.package));
    others
        .chain([QEMU])
        .find(|(name, _)| *name == program)
        .map(|(_, package)| package)
}

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
    checks.extend(check_pools(settings));
    checks.extend(check_vmm());
    checks.extend(NEEDED.iter().map(check_program));
    checks.push(check_subordinate_ids());
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
        Err(error) => {
            let advice = match error {
                CatalogError::Newer { .. } => "use the version of Sistemo that last used it",
                _ => advice,
            };
            Check::failed(NAME, causes(&error).join(": "), advice)
        }
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

const POOL: &str = "pool";
const MEND: &str = "mend storage.conf; `sistemo pool list`";

/// What the catalogue knows of pools and their volumes.
struct Records {
    catalogue: CatalogueId,
    pools: Vec<KnownPool>,
    volumes: Vec<Volume>,
    disposables: BTreeMap<VolumeId, Disposable>,
    copies: Vec<ImageCopy>,
    /// What goes from a pool as soon as the next command looks: it was moved to another.
    moved: BTreeSet<(PoolName, VolumeId)>,
}

impl Records {
    /// Reads them; `None` where there is no catalogue yet.
    fn read(data_dir: &Path) -> Result<Option<Records>, CatalogError> {
        if !data_dir.join("sistemo.db").exists() {
            return Ok(None);
        }
        let catalogue = Catalogue::open(data_dir)?;
        let id = catalogue.id();
        catalogue.read(|session| {
            Ok(Some(Records {
                catalogue: id,
                pools: session.known_pools()?,
                volumes: session.all_volumes()?,
                disposables: session.disposables()?,
                copies: session.image_copies()?,
                moved: session
                    .intents()?
                    .into_iter()
                    .filter_map(left_behind)
                    .collect(),
            }))
        })
    }

    fn left_in(&self, pool: &PoolName) -> BTreeSet<VolumeId> {
        let moved = self.moved.iter();
        let here = moved.filter(|(from, _)| from == pool);
        here.map(|(_, volume)| *volume).collect()
    }

    fn volumes_in(&self, pool: &PoolName) -> Vec<&Volume> {
        let volumes = self.volumes.iter();
        volumes.filter(|volume| volume.pool == *pool).collect()
    }
}

fn left_behind((_, intent): (IntentId, Intent)) -> Option<(PoolName, VolumeId)> {
    match intent {
        Intent::RemoveMoved { volume, from } => Some((from, volume)),
        _ => None,
    }
}

/// Looks at each pool: whether it can be used now, and whether what is in it is what the
/// catalogue knows. A catalogue that cannot be read has its own check.
fn check_pools(settings: &Settings) -> Vec<Check> {
    let registry = Registry::for_data_directory(&settings.data_dir.value);
    let conf = match StorageConf::load(&settings.surroundings(), &registry) {
        Ok(conf) => conf,
        Err(error) => {
            let found = causes(&error).join(": ");
            return vec![Check::failed(POOL, found, "mend that file")];
        }
    };
    let mut checks = Vec::new();
    let Setting { value, origin } = &settings.default_pool;
    if conf.pool(value).is_none() {
        let found = format!("{value}, the `default_pool` from {origin}, does not exist");
        checks.push(Check::failed(
            POOL,
            found,
            "choose one of `sistemo pool list`",
        ));
    }
    let Ok(records) = Records::read(&settings.data_dir.value) else {
        return checks;
    };
    let configured = conf.pools().iter();
    checks.extend(
        configured.map(|pool| check_pool(settings, &registry, &conf, pool, records.as_ref())),
    );
    checks.extend(
        records
            .iter()
            .flat_map(|records| lost_pools(&conf, records)),
    );
    checks
}

fn check_pool(
    settings: &Settings,
    registry: &Registry,
    conf: &StorageConf,
    pool: &ConfiguredPool,
    records: Option<&Records>,
) -> Check {
    let title = &pool.title;
    let unusable = |error: &(dyn std::error::Error + 'static), advice: String| {
        let found = format!("{title}: {}", causes(error).join(": "));
        if *title == *settings.default_pool.value.as_str() {
            Check::failed(POOL, found, advice)
        } else {
            Check::warning(POOL, found, advice)
        }
    };
    let name = match &pool.config {
        Ok(config) => &config.name,
        Err(fault) => return unusable(fault, MEND.to_owned()),
    };
    let known = records.map_or(&[][..], |records| &records.pools);
    let config = match usable(conf, known, name, &settings.data_dir.value) {
        Ok(config) => config,
        Err(error) => return unusable(&error, MEND.to_owned()),
    };
    let used = records.filter(|_| known.iter().any(|known| known.name == *name));
    let Some(records) = used else {
        let checked = match (&config.directory, records) {
            (Some(place), Some(records)) => marker::check_first_use(place, name, records.catalogue),
            _ => Ok(()),
        };
        return match checked {
            Ok(()) => Check::ok(POOL, format!("{title}: not used yet")),
            Err(error) => unusable(&error, MEND.to_owned()),
        };
    };
    let opened = registry.open(&config, records.catalogue, FirstUse::Known);
    let found = opened.and_then(|pool| {
        pool.probe()?;
        Ok((pool.usage()?, pool.list()?, pool))
    });
    match found {
        Ok((usage, content, pool)) => {
            let free = Bytes::new(usage.free);
            let copies = records.copies.iter().map(|copy| copy.id).collect();
            let volumes = records.volumes_in(name);
            let left = records.left_in(name);
            let disposables = &records.disposables;
            compare(
                pool.as_ref(),
                free,
                content,
                &volumes,
                disposables,
                &copies,
                &left,
            )
        }
        Err(error) => {
            let place = config.directory.as_deref().unwrap_or(Path::new("it"));
            let advice = format!("mount the disk that belongs to {}", place.display());
            unusable(&error, advice)
        }
    }
}

/// Compares what is in a pool with what is recorded in it.
fn compare(
    pool: &dyn Pool,
    free: Bytes,
    content: Vec<Found>,
    recorded: &[&Volume],
    disposables: &BTreeMap<VolumeId, Disposable>,
    copies: &BTreeSet<VolumeId>,
    left: &BTreeSet<VolumeId>,
) -> Check {
    let name = pool.name();
    let known: BTreeSet<VolumeId> = recorded.iter().map(|volume| volume.id).collect();
    let mut there = BTreeSet::new();
    let mut odd = Vec::new();
    for found in content {
        match found {
            // An image can be put there again at any time, so one too few or too many is nothing.
            Found::Volume { description, .. } if description.role == Role::Image => {}
            Found::Undescribed { id, .. }
            | Found::Orphan { id, .. }
            | Found::Damaged { id, .. }
                if copies.contains(&id) => {}
            // On its way here from another pool, which still has it, or away from here.
            Found::Volume { description, .. }
                if description.moving_from.is_some() && !known.contains(&description.id) => {}
            Found::Volume { description, .. } if left.contains(&description.id) => {}
            Found::Orphan { id, .. } if left.contains(&id) => {}
            Found::Volume { description, .. } => drop(there.insert(description.id)),
            // One that is being made; where its maker is gone, the next command removes it.
            Found::Draft { .. } => {}
            Found::Undescribed { id, .. }
            | Found::Orphan { id, .. }
            | Found::Damaged { id, .. } => {
                odd.push(format!("{id} is not whole"));
            }
            Found::Stray { name } => odd.push(format!("{name} is nothing of ours")),
        }
    }
    odd.extend(
        there
            .difference(&known)
            .map(|id| format!("{id} is not in the catalogue")),
    );
    // One that is being made or deleted may or may not be there; so may one that is made anew at
    // each start.
    let whole = recorded
        .iter()
        .filter(|volume| volume.lifecycle == Lifecycle::Ready)
        .filter(|volume| !disposables.contains_key(&volume.id));
    let missing = whole.filter(|volume| !there.contains(&volume.id));
    odd.extend(missing.map(|volume| format!("{} ({}) is missing", volume.name, volume.id)));
    if odd.is_empty() {
        let trashed = |volume: &&&Volume| volume.lifecycle == Lifecycle::Trashed;
        let in_trash = recorded.iter().filter(trashed).map(|volume| volume.id);
        let trash = in_trash.filter(|id| there.contains(id)).count();
        let volumes = there.len() - trash;
        let found = match trash {
            0 => format!("{name}: {volumes} volumes, {free} free"),
            _ => format!("{name}: {volumes} volumes, {trash} in the trash, {free} free"),
        };
        return Check::ok(POOL, found);
    }
    let advice = format!("look into {}", pool.directory().display());
    Check::warning(POOL, format!("{name}: {}", odd.join("; ")), advice)
}

/// The pools that volumes are recorded in and that are not configured.
fn lost_pools(conf: &StorageConf, records: &Records) -> Vec<Check> {
    let named: BTreeSet<_> = records.volumes.iter().map(|volume| &volume.pool).collect();
    let lost = named.into_iter().filter(|name| conf.pool(name).is_none());
    lost.map(|name| {
        let found =
            format!("{name}: it holds volumes, and no section of storage.conf describes it");
        let advice = format!("add it again where it was: `sistemo pool add {name}`");
        Check::warning(POOL, found, advice)
    })
    .collect()
}

fn check_vmm() -> Vec<Check> {
    match Qemu::new().probe() {
        Err(error) => {
            let found = causes(&error).join(": ");
            {
                let advice = format!("sudo apt install {}", QEMU.1);
                vec![Check::failed("QEMU", found, advice)]
            }
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

fn check_program(needed: &Needed) -> Check {
    let Needed {
        program,
        package,
        purpose,
        if_missing,
    } = needed;
    match program::locate(program) {
        Some(path) => Check::ok(program, path.display().to_string()),
        None => Check {
            name: program,
            verdict: *if_missing,
            found: format!("not installed; needed for {purpose}"),
            advice: Some(format!("sudo apt install {package}")),
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
            Check::failed(NAME, causes(&error).join(": "), advice)
        }
    }
}
