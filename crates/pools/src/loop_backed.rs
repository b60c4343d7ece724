//! Pools that have a filesystem of their own, in one sparse file: a host that has only ext4 gets
//! the filesystem that a driver is made for.
//!
//! The pool's directory holds three things:
//!
//! | name | what it is |
//! |---|---|
//! | `.sistemo-pool` | the pool's marker |
//! | `filesystem.img` | the filesystem, a sparse file |
//! | `mounted/` | where it is mounted; the driver's pool lies there, with a marker of its own |
//!
//! So an unmounted filesystem is never written into: its mount point has no marker. A driver
//! offers this with the option [`DriverOption::size`](crate::registry::DriverOption::size) and
//! calls [`open`] where [`is_wanted`] says so:
//!
//! ```text
//! let size = loop_backed::size_of(config)?;
//! if loop_backed::is_wanted(size, directory) {
//!     let plan = loop_backed::Plan { pool: &config.name, directory, kind, size, … };
//!     return loop_backed::open(&plan, &|inner, first_use| {
//!         Ok(Arc::new(MyPool::open(config.name.clone(), inner, catalogue, first_use)?))
//!     });
//! }
//! ```
//!
//! The first use makes the file as `filesystem.img.new`, makes the filesystem in it, and renames
//! it; a kill in between leaves the `.new`, which the next first use begins again. Whoever opens
//! the pool first after a start of the host mounts it, which needs root; whoever comes next finds
//! it mounted, knows it by the file beneath its loop device, and needs no more than access. What
//! makes, mounts, grows or unmounts holds a lock on the pool's directory meanwhile, and so do the
//! programs that it runs. Since the file is thin, the host below can be full before the
//! filesystem is: its free space counts too.

mod pool;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use sistemo_host::directory::{self, Directory, FileError, Open};
use sistemo_host::lock::{self, Lock, LockError};
use sistemo_host::mount::{self, FilesystemKind, Mounted};
use sistemo_host::program::ProgramError;
use sistemo_host::system;
use sistemo_model::{Bytes, CatalogueId, PoolName};

use self::pool::LoopBackedPool;
use crate::config::PoolConfig;
use crate::registry::SIZE;
use crate::{FirstUse, Pool, PoolError, marker};

const IMAGE: &str = "filesystem.img";
const DRAFT: &str = "filesystem.img.new";
const MOUNT_POINT: &str = "mounted";
/// How long a filesystem that is to be unmounted may still be in use: by a machine that ends just
/// now, or by a program that another thread starts just now and that is still a copy of us.
const LAST_USE: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a loop-backed pool is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// The pool.
    pub(crate) pool: &'a PoolName,
    /// Its directory, absolute.
    pub(crate) directory: &'a Path,
    /// Whose it is.
    pub(crate) catalogue: CatalogueId,
    /// Whether it may be made.
    pub(crate) first_use: FirstUse,
    /// What it is made with.
    pub(crate) kind: FilesystemKind,
    /// How large it is made; nobody looks at it afterwards.
    pub(crate) size: Option<Bytes>,
}

/// Opens the driver's pool in a directory of the mounted filesystem.
pub(crate) type OpenInner<'a> = dyn Fn(&Path, FirstUse) -> Result<Arc<dyn Pool>, PoolError> + 'a;

/// The size that a pool's configuration gives its own filesystem, where it does.
pub(crate) fn size_of(config: &PoolConfig) -> Result<Option<Bytes>, PoolError> {
    let Some(value) = config.options.get(SIZE) else {
        return Ok(None);
    };
    let number = value.parse().map_err(|_| PoolError::BadOption {
        pool: config.name.clone(),
        option: SIZE.to_owned(),
        value: value.clone(),
        reason: "it is not a number of bytes".to_owned(),
    })?;
    Ok(Some(Bytes::new(number)))
}

/// Whether a pool is loop-backed: it is to have a size, or has its filesystem already. (Without
/// the second, a `size` that was taken out of the configuration would hide its volumes.)
pub(crate) fn is_wanted(size: Option<Bytes>, directory: &Path) -> bool {
    size.is_some() || directory.join(IMAGE).is_file()
}

/// Opens a loop-backed pool: mounts its filesystem where it is not mounted, and has `open_inner`
/// open the driver's pool in it. On first use the filesystem is made too.
///
/// A crash leaves what the next call goes on with.
///
/// # Errors
/// As opening any pool has; [`PoolError::BadOption`] for a size that the filesystem cannot have,
/// [`PoolError::Unsuited`] where mounting would need root, [`PoolError::Program`] and
/// [`PoolError::OwnFilesystem`] where it cannot be made or mounted. What was made on the way to it
/// is gone again.
pub(crate) fn open(
    plan: &Plan<'_>,
    open_inner: &OpenInner<'_>,
) -> Result<Arc<dyn Pool>, PoolError> {
    check_size(plan)?;
    let mut inner = None;
    let outer = marker::enter_prepared(
        plan.directory,
        plan.pool,
        plan.catalogue,
        plan.first_use,
        |outer| {
            let room = Room {
                outer,
                pool: plan.pool,
                kind: plan.kind,
            };
            inner = Some(room.open_inner(plan, open_inner)?);
            Ok(())
        },
    )?;
    let inner = inner.ok_or_else(|| PoolError::NoPlace {
        pool: plan.pool.clone(),
    })?;
    Ok(Arc::new(LoopBackedPool {
        outer,
        catalogue: plan.catalogue,
        kind: plan.kind,
        inner,
    }))
}

fn check_size(plan: &Plan<'_>) -> Result<(), PoolError> {
    let minimum = minimum(plan.kind);
    match plan.size {
        Some(size) if plan.first_use == FirstUse::Allowed && size < minimum => {
            Err(PoolError::BadOption {
                pool: plan.pool.clone(),
                option: SIZE.to_owned(),
                value: size.to_string(),
                reason: format!("{} needs at least {minimum}", name_of(plan.kind)),
            })
        }
        _ => Ok(()),
    }
}

pub(crate) fn name_of(kind: FilesystemKind) -> &'static str {
    match kind {
        FilesystemKind::Xfs => "XFS",
        FilesystemKind::Btrfs => "btrfs",
    }
}

/// The smallest size that a filesystem can be made with, and grown from.
fn minimum(kind: FilesystemKind) -> Bytes {
    match kind {
        // What mkfs.xfs insists on.
        FilesystemKind::Xfs => Bytes::from_mib(300),
        // It can be made smaller, but the kernel resizes none to less (`btrfs_ioctl_resize`).
        FilesystemKind::Btrfs => Bytes::from_mib(256),
    }
}

/// The directory of a loop-backed pool.
#[derive(Clone, Copy, Debug)]
struct Room<'a> {
    outer: &'a Directory,
    pool: &'a PoolName,
    kind: FilesystemKind,
}

/// What was made on the way to an open pool, newest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Image,
    MountPoint,
    Mount,
}

impl Room<'_> {
    fn image(&self) -> PathBuf {
        self.outer.path_of(IMAGE)
    }

    fn mount_point(&self) -> PathBuf {
        self.outer.path_of(MOUNT_POINT)
    }

    fn failed(&self, action: &'static str, source: FileError) -> PoolError {
        PoolError::OwnFilesystem {
            action,
            pool: self.pool.clone(),
            source,
        }
    }

    fn program_failed(&self, action: &str, source: ProgramError) -> PoolError {
        PoolError::Program {
            action: format!("{action} the filesystem"),
            pool: self.pool.clone(),
            source,
        }
    }

    fn unsuited(&self, reason: String) -> PoolError {
        PoolError::Unsuited {
            pool: self.pool.clone(),
            directory: self.outer.path().to_owned(),
            reason,
        }
    }

    /// Keeps everybody else from making, mounting, growing or unmounting it.
    fn lock(&self, action: &'static str) -> Result<Lock, PoolError> {
        Lock::acquire_directory(self.outer, lock::PATIENCE).map_err(|error| {
            let source = match error {
                LockError::File(source) => source,
                held @ LockError::Held { .. } => {
                    FileError::new("lock", self.outer.path(), std::io::Error::other(held))
                }
            };
            self.failed(action, source)
        })
    }

    fn open_inner(
        &self,
        plan: &Plan<'_>,
        open_inner: &OpenInner<'_>,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        if plan.first_use == FirstUse::Known {
            // An ordinary user who may not write here, and so not lock, may use what is mounted.
            if self.mounted("mount")?.is_none() {
                let lock = self.lock("mount")?;
                self.mount(&lock, &mut Vec::new())?;
            }
            return open_inner(&self.mount_point(), FirstUse::Known);
        }
        let lock = self.lock("make")?;
        let mut made = Vec::new();
        let opened = self
            .make(plan, &lock, &mut made)
            .and_then(|()| self.mount(&lock, &mut made))
            .and_then(|()| self.share_access())
            .and_then(|()| open_inner(&self.mount_point(), FirstUse::Allowed));
        if opened.is_err() {
            self.take_back(&made);
        }
        opened
    }

    /// Makes the filesystem where there is none.
    fn make(&self, plan: &Plan<'_>, lock: &Lock, made: &mut Vec<Made>) -> Result<(), PoolError> {
        let failed = |source| self.failed("make", source);
        if self.outer.contains(IMAGE).map_err(failed)? {
            return Ok(());
        }
        let Some(size) = plan.size else {
            return Err(self.missing());
        };
        self.require_root("making and mounting its filesystem")?;
        let formatted = self.format_draft(size, lock);
        let published = formatted.and_then(|()| self.outer.publish(DRAFT, IMAGE).map_err(failed));
        if published.is_err() {
            // The next first use begins it again.
            let _ = self.outer.unlink(DRAFT);
        }
        published?;
        made.push(Made::Image);
        Ok(())
    }

    fn format_draft(&self, size: Bytes, lock: &Lock) -> Result<(), PoolError> {
        let failed = |source| self.failed("make", source);
        // What a killed first use left may hold anything.
        let _ = self.outer.unlink(DRAFT).map_err(failed)?;
        let file = self.outer.file(DRAFT, Open::CreateNew).map_err(failed)?;
        let path = self.outer.path_of(DRAFT);
        file.set_len(size.get())
            .map_err(|error| failed(FileError::new("set the length of", &path, error)))?;
        mount::make_filesystem(self.kind, &path, lock)
            .map_err(|source| self.program_failed("make", source))
    }

    fn missing(&self) -> PoolError {
        let source = FileError::new("open", self.image(), Errno::NOENT);
        self.failed("mount", source)
    }

    fn require_root(&self, what: &str) -> Result<(), PoolError> {
        if system::is_root() {
            Ok(())
        } else {
            Err(self.unsuited(format!("{what} needs root")))
        }
    }

    /// What is mounted in its place: its own filesystem, or nothing.
    fn mounted(&self, action: &'static str) -> Result<Option<Mounted>, PoolError> {
        let path = self.mount_point();
        let failed = |error| self.failed(action, FileError::new("look up", &path, error));
        let Some(mounted) = mount::mounted_at(&path).map_err(failed)? else {
            return Ok(None);
        };
        if mounted.kind != self.kind.as_str()
            || !mounted.is_of_file(&self.image()).map_err(failed)?
        {
            let source = mounted.source.display();
            let reason = format!("{} from {source} is mounted at {MOUNT_POINT}", mounted.kind);
            return Err(self.unsuited(reason));
        }
        Ok(Some(mounted))
    }

    /// Mounts it where it is not mounted.
    fn mount(&self, lock: &Lock, made: &mut Vec<Made>) -> Result<(), PoolError> {
        if self.mounted("mount")?.is_some() {
            return Ok(());
        }
        let failed = |source| self.failed("mount", source);
        if !self.outer.contains(IMAGE).map_err(failed)? {
            return Err(self.missing());
        }
        self.require_root("mounting its filesystem")?;
        let mount_point = self.mount_point();
        if Directory::create(&mount_point).map_err(failed)?.1 == sistemo_host::Changed::Yes {
            made.push(Made::MountPoint);
        }
        mount::mount_file(self.kind, &self.image(), &mount_point, lock)
            .map_err(|source| self.program_failed("mount", source))?;
        made.push(Made::Mount);
        match self.mounted("mount")? {
            Some(_) => Ok(()),
            None => Err(failed(FileError::new(
                "find what was mounted at",
                mount_point,
                Errno::NOENT,
            ))),
        }
    }

    /// Lets those into the filesystem who may enter the pool's directory.
    fn share_access(&self) -> Result<(), PoolError> {
        let path = self.mount_point();
        let failed =
            |action, error: Errno| self.failed("make", FileError::new(action, &path, error));
        let stat = rustix::fs::fstat(self.outer).map_err(|e| failed("look up", e))?;
        let root = Directory::open(&path).map_err(|source| self.failed("make", source))?;
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&root, Some(owner), Some(group)).map_err(|e| failed("own", e))?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(stat.st_mode))
            .map_err(|e| failed("set the mode of", e))
    }

    /// Undoes a first use that failed. What cannot be undone is found by the next.
    fn take_back(&self, made: &[Made]) {
        for step in made.iter().rev() {
            let undone = match step {
                Made::Mount => mount::detach(&self.mount_point()),
                Made::MountPoint => std::fs::remove_dir(self.mount_point())
                    .map_err(|error| FileError::new("remove", self.mount_point(), error)),
                Made::Image => self.outer.unlink(IMAGE).map(drop),
            };
            if let Err(error) = undone {
                tracing::warn!(%error, "a part of a filesystem that was not used stays");
                return;
            }
        }
    }

    /// The size of the file.
    fn size(&self, action: &'static str) -> Result<Bytes, PoolError> {
        let file = self
            .outer
            .file(IMAGE, Open::Read)
            .map_err(|source| self.failed(action, source))?;
        let meta = file.metadata().map_err(|error| {
            let source = FileError::new("look up", self.image(), error);
            self.failed(action, source)
        })?;
        Ok(Bytes::new(meta.len()))
    }

    /// Makes the file that large and the filesystem as large as the file.
    fn grow(&self, to: Bytes) -> Result<(), PoolError> {
        let failed = |source| self.failed("grow", source);
        let lock = self.lock("grow")?;
        let size = self.size("grow")?;
        if to < size {
            return Err(PoolError::PoolShrinks {
                pool: self.pool.clone(),
                size,
                to,
            });
        }
        self.require_root("growing its filesystem")?;
        if to > size {
            let file = self.outer.file(IMAGE, Open::ReadWrite).map_err(failed)?;
            let path = self.image();
            file.set_len(to.get())
                .map_err(|error| failed(FileError::new("set the length of", &path, error)))?;
            directory::flush(&path, &file).map_err(failed)?;
        }
        self.mount(&lock, &mut Vec::new())?;
        let Some(mounted) = self.mounted("grow")? else {
            return Err(self.missing());
        };
        mount::grow_filesystem(self.kind, &mounted, &self.mount_point(), &lock)
            .map_err(|source| self.program_failed("grow", source))
    }

    fn unmount(&self) -> Result<(), PoolError> {
        let _lock = self.lock("unmount")?;
        if self.mounted("unmount")?.is_none() {
            return Ok(());
        }
        let path = self.mount_point();
        let failed = |source| self.failed("unmount", source);
        // Not left to umount(2): this process has the pool itself open, so it would always refuse.
        let started = Instant::now();
        let users = loop {
            let users = mount::users(&path)
                .map_err(|error| failed(FileError::new("look who uses", &path, error)))?;
            if users.is_empty() || started.elapsed() >= LAST_USE {
                break users;
            }
            thread::sleep(LOOK_AGAIN);
        };
        if !users.is_empty() {
            let text = format!("{} uses it", users.join(", "));
            let error = std::io::Error::new(std::io::ErrorKind::ResourceBusy, text);
            return Err(failed(FileError::new("unmount", &path, error)));
        }
        mount::detach(&path).map_err(failed)
    }
}
