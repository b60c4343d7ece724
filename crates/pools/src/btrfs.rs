//! The `btrfs` driver: a subvolume a volume.
//!
//! A volume is a subvolume, `<id>`, that holds its data, `data.raw`; and, beside the subvolume,
//! its description, `<id>.json`. A snapshot is a read-only subvolume, `<id>@<name>`, that the
//! kernel made of the volume's; and an empty file, `<id>.taken@<name>`, for its time. While
//! something is being made of a volume there is a directory `<id>.new` (the volume) or
//! `<id>.work` (anything else), in which a new subvolume has the name `volume` before it is moved
//! to its place. A subvolume that is taken apart, where it cannot be deleted in one step, has the
//! name `<id>.gone`. The state of a volume can be read from the names alone, after a crash too:
//!
//! | `<id>` | `.json` | besides | state | how it came about | what recovers it |
//! |---|---|---|---|---|---|
//! | yes | yes | – | [`Found::Volume`] | created, cloned | |
//! | yes | yes | `.new` | [`Found::Volume`] | create or clone killed at its end | the next operation on it |
//! | yes | yes | `.work`, `.gone`, `.taken` alone | [`Found::Volume`] | snapshot, revert or delete of a snapshot killed | the next operation on it |
//! | yes | no, or unreadable | any | [`Found::Undescribed`] | damage | [`Pool::describe`] |
//! | – | any | `.new`, no snapshot | [`Found::Draft`] | create or clone killed | [`Pool::remove`] |
//! | – | yes | anything else | [`Found::Orphan`] | remove killed, or damage | [`Pool::remove`] |
//! | – | – | `.work`, `.gone`, snapshots | [`Found::Orphan`] | remove killed, then damage | [`Pool::remove`] |
//! | – | – | only `.json.part` | [`Found::Draft`] | create killed, then damage | [`Pool::remove`] |
//! | no subvolume, or without its data | any | any | [`Found::Damaged`] | damage | a person |
//!
//! So the subvolume under its final name is the volume, and the one under a snapshot's name the
//! snapshot: the kernel gives and takes these names in one step. `<id>.json.part` beside other
//! things is the rest of a description whose writing was killed; the next writing goes over it.
//! Data that is longer than its description says is a [`Pool::grow`], or a
//! [`Snapshots::revert`], that was killed; repeating it completes it.
//!
//! # What is durable when
//!
//! Making a snapshot of a subvolume commits the filesystem's transaction: all that was done
//! before, in whatever subvolume, is then on disk with it (`create_snapshot` in the kernel's
//! `fs/btrfs/ioctl.c`; only file data that was written and not flushed, outside of the source,
//! is not). So a snapshot is one commit, and so is a clone of the same size: its description is
//! flushed first, to the log, and then the subvolume is made under its final name. Making an
//! empty subvolume commits nothing since Linux 6.5, nor does renaming or deleting one; fsync(2)
//! of the directory does so then, once.
//!
//! Deleting a subvolume gives its space back when the kernel's cleaner has been through it, within
//! a minute or so. In a pool with little room subvolumes are emptied instead, so that the space
//! is there when the removal returns.
//!
//! A snapshot that is taken while a machine writes holds what a disk would hold after a power
//! cut. The kernel first writes out what the volume's file has in memory and waits for it, then
//! commits, and the snapshot is what the subvolume's tree holds at the commit. What was flushed
//! before is in that tree: fsync(2) waits for the writing, and the commit for those extents that
//! it found written and not yet entered (Linux commit 487781796d30). Data that is written in
//! place cannot get into a snapshot afterwards, for such writes wait while one is made (Linux
//! commit e9894fd3e3b3).
//!
//! The time at which a snapshot was taken is the modification time of an empty file,
//! `<id>.taken@<name>`, that the same commit carries. It is not kept in the subvolume: the first
//! change to one after a snapshot makes the kernel count the users of all extents that the
//! changed part of the tree knows, which would make snapshots of fragmented volumes slower.

mod draft;
mod driver;
mod names;
mod powers;
mod subvolume;
mod workplace;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use sistemo_host::Changed;
use sistemo_host::directory::{self, Directory, FileError, Open};
use sistemo_host::program::{Program, ProgramError};
use sistemo_host::system;
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, VolumeId};

pub use self::driver::BtrfsDriver;
pub use self::writing::{Compression, NoCompression, Writing};

use self::draft::BtrfsDraft;
use self::names::Kind;
use self::workplace::Workplace;
use crate::content::RawContent;
use crate::contract::{
    Clones, Draft, Facts, Flaw, Format, Found, Location, OwnFilesystem, Pool, Progress, Sharing,
    Snapshots, Usage,
};
use crate::error::Subject;
use crate::marker::{self, FirstUse};
use crate::{Content, Description, PoolError, examination, place};

/// So much free space, in bytes, is enough not to wait for more.
const ROOM: u64 = 1 << 30;

/// A pool of the `btrfs` driver.
#[derive(Debug)]
pub struct BtrfsPool {
    name: PoolName,
    catalogue: CatalogueId,
    directory: Directory,
    writing: Writing,
}

/// What the system says about a name.
#[derive(Clone, Copy, Debug)]
struct Stat {
    regular: bool,
    subvolume: bool,
    size: Bytes,
    used: Bytes,
}

/// What stands where the subvolume of a volume or snapshot should be.
enum Data {
    Missing,
    File { directory: Directory, stat: Stat },
    Flawed(Flaw),
}

fn is_directory(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn stat(directory: &Directory, name: &str) -> Result<Option<Stat>, FileError> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Stat {
            regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            subvolume: is_directory(&stat) && stat.st_ino == subvolume::ROOT_INODE,
            size: Bytes::new(u64::try_from(stat.st_size).unwrap_or(0)),
            // In units of 512 bytes whatever the filesystem's block is: stat(2).
            used: Bytes::new(u64::try_from(stat.st_blocks).unwrap_or(0) * 512),
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(FileError::new("look up", directory.path_of(name), error)),
    }
}

/// Nobody but its owner enters a subvolume, whatever the umask was.
fn keep_private(directory: &Directory) -> Result<(), FileError> {
    rustix::fs::fchmod(directory, Mode::RWXU)
        .map_err(|error| FileError::new("set the mode of", directory.path(), error))
}

impl BtrfsPool {
    /// Opens a pool's directory; on first use its last component and the pool's marker are made
    /// where they are missing. A relative `path` is taken from the current directory once, now.
    ///
    /// A crash in the middle leaves at most a directory without a marker, on which the next
    /// first use goes on. Of several processes that come first at once, one makes the marker.
    ///
    /// # Errors
    /// As [`FilePool::open`](crate::FilePool::open); and [`PoolError::Unsuited`] where it is not on a btrfs, without
    /// making anything.
    pub fn open(
        name: PoolName,
        path: &Path,
        writing: Writing,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<BtrfsPool, PoolError> {
        let path = std::path::absolute(path).map_err(|error| {
            marker::unavailable(&name, path, FileError::new("make absolute", path, error))
        })?;
        let suited = |directory: &Directory| check_suited(&name, directory);
        let directory = marker::enter_prepared(&path, &name, catalogue, first_use, suited)?;
        Ok(BtrfsPool {
            name,
            catalogue,
            directory,
            writing,
        })
    }

    fn subject(&self, volume: VolumeId) -> Subject<'_> {
        Subject {
            pool: &self.name,
            volume,
        }
    }

    fn unavailable(&self, source: FileError) -> PoolError {
        marker::unavailable(&self.name, self.directory.path(), source)
    }

    fn already_there(&self, volume: VolumeId) -> PoolError {
        PoolError::AlreadyThere {
            pool: self.name.clone(),
            volume,
        }
    }

    /// Makes the error of a program that failed for a volume. Of what the system answered it we
    /// only have its words; they are the C locale's, for so it was started.
    fn program_failed(
        &self,
        volume: VolumeId,
        action: &'static str,
        source: ProgramError,
    ) -> PoolError {
        let known = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
        if let ProgramError::Failed { message, .. } = &source {
            let said = |error: &&Errno| message.contains(words(**error));
            if let Some(error) = known.iter().find(said) {
                let source = FileError::new(
                    "make or delete a subvolume in",
                    self.directory.path(),
                    *error,
                );
                return self.subject(volume).failed(action, source);
            }
        }
        PoolError::Program {
            action: format!("{action} volume {volume}"),
            pool: self.name.clone(),
            source,
        }
    }

    /// What is there of the subvolume of a volume or of its snapshot.
    fn locate(&self, id: VolumeId, name: &str) -> Result<Data, PoolError> {
        let failed = |error| self.subject(id).failed("look up", error);
        match stat(&self.directory, name).map_err(failed)? {
            None => return Ok(Data::Missing),
            Some(stat) if stat.subvolume => {}
            Some(_) => {
                let path = self.directory.path_of(name);
                let reason = format!("{} is not a subvolume", path.display());
                return Ok(Data::Flawed(Flaw::Unreadable { reason }));
            }
        }
        let directory = match self.directory.subdirectory(name) {
            Ok(directory) => directory,
            Err(error) if error.is_not_found() => return Ok(Data::Missing),
            Err(error) => return Err(failed(error)),
        };
        Ok(match stat(&directory, names::DATA).map_err(failed)? {
            Some(stat) if stat.regular => Data::File { directory, stat },
            Some(_) => Data::Flawed(Flaw::NotAFile {
                path: directory.path_of(names::DATA),
            }),
            // It may be on its way out: then it is gone, not damaged.
            None if self.directory.contains(name).map_err(failed)? => Data::Flawed(Flaw::Missing),
            None => Data::Missing,
        })
    }

    /// The subvolume and the data of a volume that exists.
    fn data(&self, id: VolumeId) -> Result<(Directory, Stat), PoolError> {
        match self.locate(id, &names::volume(id))? {
            Data::File { directory, stat } => Ok((directory, stat)),
            Data::Missing => Err(self.subject(id).missing()),
            Data::Flawed(flaw) => Err(self.subject(id).damaged(flaw)),
        }
    }

    fn check_no_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        match self.locate(id, &names::volume(id))? {
            Data::Missing => Ok(()),
            Data::File { .. } => Err(self.already_there(id)),
            Data::Flawed(flaw) => Err(self.subject(id).damaged(flaw)),
        }
    }

    fn facts_of(directory: &Directory, stat: Stat) -> Facts {
        Facts {
            path: directory.path_of(names::DATA),
            size: stat.size,
            used: stat.used,
            format: Format::Raw,
        }
    }

    /// The volume whose data is there; `None` where it was removed meanwhile.
    fn volume(
        &self,
        id: VolumeId,
        directory: &Directory,
        stat: Stat,
    ) -> Result<Option<Found>, PoolError> {
        let facts = BtrfsPool::facts_of(directory, stat);
        Ok(match self.read_description(id) {
            Ok(description) => Some(Found::Volume { description, facts }),
            Err(_) if self.contains(id, &names::volume(id))? => {
                Some(Found::Undescribed { id, facts })
            }
            Err(_) => None,
        })
    }

    fn contains(&self, id: VolumeId, name: &str) -> Result<bool, PoolError> {
        let contains = self.directory.contains(name);
        contains.map_err(|error| self.subject(id).failed("look up", error))
    }

    fn read_description(&self, id: VolumeId) -> Result<Description, PoolError> {
        let name = names::description(id);
        place::read_description(&self.directory, &name, self.subject(id))
    }

    /// Writes a description that is durable when the directory is flushed the next time, or the
    /// filesystem's transaction is committed.
    fn stage_description(&self, description: &Description) -> Result<(), PoolError> {
        let (id, name) = (description.id, names::description(description.id));
        place::stage_description(&self.directory, &name, self.subject(id), description)
    }

    fn open_data(&self, id: VolumeId, access: Access) -> Result<RawContent, PoolError> {
        let (directory, stat) = self.data(id)?;
        let how = match access {
            Access::ReadWrite => Open::ReadWrite,
            Access::ReadOnly => Open::Read,
        };
        let file = directory
            .file(names::DATA, how)
            .map_err(|source| self.subject(id).failed("open", source))?;
        Ok(RawContent {
            file,
            path: directory.path_of(names::DATA),
            pool: self.name.clone(),
            volume: id,
            size: stat.size,
            access,
        })
    }

    fn lengthen(&self, data: &RawContent, to: Bytes) -> Result<(), PoolError> {
        let id = data.volume;
        data.file.set_len(to.get()).map_err(|error| {
            let source = FileError::new("set the length of", &data.path, error);
            self.subject(id).failed("grow", source)
        })?;
        directory::flush(&data.path, &data.file)
            .map_err(|source| self.subject(id).failed("grow", source))
    }

    /// Whether nobody will miss the space of what is deleted before the kernel gives it back.
    fn has_room(&self) -> Result<bool, PoolError> {
        let Usage { size, free, .. } = self.usage()?;
        Ok(free >= ROOM.min(size / 4))
    }

    /// All that is there of a volume, by name.
    fn parts(&self, id: VolumeId) -> Result<Vec<(Kind, String)>, PoolError> {
        let names = self.directory.names();
        let names = names.map_err(|error| self.unavailable(error))?;
        let ours = names.into_iter().filter_map(|name| {
            let (owner, kind) = names::parse(&name)?;
            (owner == id).then_some((kind, name))
        });
        Ok(ours.collect())
    }
}

fn check_suited(pool: &PoolName, directory: &Directory) -> Result<(), PoolError> {
    let path = directory.path();
    match system::filesystem_name(path) {
        Ok(Some("btrfs")) => Ok(()),
        Ok(other) => Err(PoolError::Unsuited {
            pool: pool.clone(),
            directory: path.to_owned(),
            reason: format!(
                "it is on {}, not on btrfs; with a size the pool gets a btrfs of its own, and a \
                 qcow2 pool clones at once on any filesystem",
                other.unwrap_or("another filesystem")
            ),
        }),
        Err(error) => {
            let source = FileError::new("look up the filesystem of", path, error);
            Err(marker::unavailable(pool, path, source))
        }
    }
}

/// What the C locale says to an error.
fn words(error: Errno) -> &'static str {
    match error {
        Errno::NOSPC => "No space left on device",
        Errno::DQUOT => "Disk quota exceeded",
        _ => "Read-only file system",
    }
}

impl Pool for BtrfsPool {
    fn name(&self) -> &PoolName {
        &self.name
    }

    fn driver(&self) -> &'static str {
        driver::NAME
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn probe(&self) -> Result<(), PoolError> {
        place::probe(&self.directory, &self.name, self.catalogue)?;
        match Program::find(subvolume::PROGRAM) {
            Ok(_) => Ok(()),
            Err(source) => Err(PoolError::Program {
                action: "make subvolumes".to_owned(),
                pool: self.name.clone(),
                source,
            }),
        }
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        place::usage(self.directory.path(), &self.name)
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        let mut ours = BTreeSet::new();
        let mut strays = Vec::new();
        let names = self.directory.names();
        for name in names.map_err(|error| self.unavailable(error))? {
            match names::parse(&name) {
                Some((id, _)) => drop(ours.insert(id)),
                None if marker::is_marker(&name) => {}
                None => strays.push(name),
            }
        }
        let mut found = Vec::with_capacity(ours.len());
        for id in ours {
            let volume = match self.locate(id, &names::volume(id))? {
                Data::File { directory, stat } => self.volume(id, &directory, stat)?,
                Data::Missing | Data::Flawed(_) => None,
            };
            // Anything but a plain volume is looked at afresh: it may be changing meanwhile.
            found.extend(match volume {
                Some(volume) => Some(volume),
                None => self.find(id)?,
            });
        }
        found.extend(strays.into_iter().map(|name| Found::Stray { name }));
        Ok(found)
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        // The draft before the volume: a draft that is committed meanwhile is then seen as one or
        // as the other, never as neither.
        let draft = self.contains(id, &names::nursery(id))?;
        match self.locate(id, &names::volume(id))? {
            Data::File { directory, stat } => return self.volume(id, &directory, stat),
            Data::Flawed(flaw) => return Ok(Some(Found::Damaged { id, flaw })),
            Data::Missing => {}
        }
        let parts = self.parts(id)?;
        let has = |wanted: fn(&Kind) -> bool| parts.iter().any(|(kind, _)| wanted(kind));
        let orphan = || Found::Orphan {
            id,
            description: self.read_description(id).ok(),
        };
        Ok(if parts.is_empty() {
            None
        } else if has(|kind| *kind == Kind::Volume) {
            // It came to be, or went, meanwhile.
            match self.locate(id, &names::volume(id))? {
                Data::File { directory, stat } => self.volume(id, &directory, stat)?,
                Data::Missing | Data::Flawed(_) => None,
            }
        } else if has(|kind| matches!(kind, Kind::Snapshot(_))) {
            // Nobody removes what has snapshots for a draft.
            Some(orphan())
        } else if draft || has(|kind| *kind == Kind::Nursery) {
            Some(Found::Draft { id })
        } else if has(|kind| *kind != Kind::Part) {
            Some(orphan())
        } else {
            Some(Found::Draft { id })
        })
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        place::check_size(description.id, description.size)?;
        self.check_no_volume(description.id)?;
        Ok(Box::new(BtrfsDraft::begin(self, description)?))
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        const ACTION: &str = "remove";
        let failed = |source| self.subject(id).failed(ACTION, source);
        if self.parts(id)?.is_empty() {
            return Ok(Changed::No);
        }
        let workplace = Workplace::enter_to_remove(self, id, ACTION)?;
        // Anew: a program that outlived its process may have made something meanwhile.
        let (mut subvolumes, mut files) = (Vec::new(), Vec::new());
        for (kind, name) in self.parts(id)? {
            match kind {
                // It first: what is left of a removal is then no volume, and never taken for one.
                Kind::Volume => subvolumes.insert(0, name),
                Kind::Snapshot(_) => subvolumes.push(name),
                // The description last: it says what the rest belongs to.
                Kind::Taken(_) => files.insert(0, name),
                Kind::Description | Kind::Part => files.push(name),
                Kind::Nursery | Kind::Workplace | Kind::Doomed => {}
            }
        }
        let _ = workplace.discard(&subvolumes, ACTION)?;
        for name in files {
            let _ = self.directory.unlink(&name).map_err(failed)?;
        }
        drop(workplace);
        self.directory.flush().map_err(failed)?;
        Ok(Changed::Yes)
    }

    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError> {
        place::check_size(id, to)?;
        let (_, stat) = self.data(id)?;
        let mut description = self.read_description(id)?;
        let growth = place::check_growth(self.subject(id), stat.size, description.size, to)?;
        if growth == Changed::No {
            return Ok(Changed::No);
        }
        let data = self.open_data(id, Access::ReadWrite)?;
        description.size = to;
        let described = self
            .lengthen(&data, to)
            .and_then(|()| self.stage_description(&description));
        if let Err(error) = described {
            // The new part holds nothing yet. Where this fails too, it is as after a crash.
            let _ = data.file.set_len(stat.size.get());
            return Err(error);
        }
        self.directory
            .flush()
            .map_err(|source| self.subject(id).failed("grow", source))?;
        Ok(Changed::Yes)
    }

    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        self.open_data(id, access)
            .map(|data| Location::RawFile(data.path))
    }

    fn close(&self, _id: VolumeId) -> Result<(), PoolError> {
        Ok(())
    }

    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError> {
        Ok(Box::new(self.open_data(id, access)?))
    }

    fn describe(&self, description: &Description) -> Result<Changed, PoolError> {
        let _ = self.data(description.id)?;
        if self
            .read_description(description.id)
            .is_ok_and(|old| old == *description)
        {
            return Ok(Changed::No);
        }
        self.stage_description(description)?;
        self.directory
            .flush()
            .map_err(|source| self.subject(description.id).failed("describe", source))?;
        Ok(Changed::Yes)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        let _ = self.data(id)?;
        self.read_description(id)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        let (directory, stat) = self.data(id)?;
        Ok(BtrfsPool::facts_of(&directory, stat))
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        let real = match self.locate(id, &names::volume(id))? {
            Data::Missing => return Ok(vec![Flaw::Missing]),
            Data::Flawed(flaw) => return Ok(vec![flaw]),
            Data::File { .. } => self.open_data(id, Access::ReadOnly)?.size,
        };
        let mut flaws = Vec::new();
        if real != recorded {
            flaws.push(Flaw::WrongSize { recorded, real });
        }
        flaws.extend(place::description_flaw(
            self.read_description(id),
            recorded,
        )?);
        for name in self.snapshot_names(id)? {
            if let Data::Flawed(flaw) = self.locate(id, &names::snapshot(id, &name))? {
                let reason = format!("of its snapshot {name}: {flaw}");
                flaws.push(Flaw::Unreadable { reason });
            }
        }
        Ok(flaws)
    }

    fn examine(
        &self,
        id: VolumeId,
        recorded: Bytes,
        progress: Progress<'_>,
    ) -> Result<Vec<Flaw>, PoolError> {
        examination::examine(self, id, recorded, progress)
    }

    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError> {
        let Some(own) = self.open_data(id, Access::ReadOnly)?.shares()? else {
            return Ok(None);
        };
        let mut snapshots = BTreeMap::new();
        for name in self.snapshot_names(id)? {
            let opened = match self.open_kept(id, &name) {
                Ok(opened) => opened,
                // Deleted meanwhile.
                Err(PoolError::NoSuchSnapshot { .. }) => continue,
                Err(error) => return Err(error),
            };
            let alone = opened.shares()?.map_or(0, |shares| shares.alone);
            snapshots.insert(name, Bytes::new(alone));
        }
        Ok(Some(Sharing {
            shared: Bytes::new(own.shared),
            alone: Bytes::new(own.alone),
            snapshots,
        }))
    }

    fn clones(&self) -> Option<&dyn Clones> {
        Some(self)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn own_filesystem(&self) -> Option<&dyn OwnFilesystem> {
        None
    }
}
