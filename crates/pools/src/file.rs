//! The `file` driver: a directory of sparse files, on any filesystem; and `file-reflink`, which is
//! the same but never copies what it can share.
//!
//! A volume is two files: its data, `<id>.ext4` (or `.xfs`, `.btrfs`, `.raw`, by the filesystem
//! it was made with), and its description, `<id>.json`. Both have mode 0600. A snapshot is one
//! more, `<id>@<name>.ext4`, mode 0400. The state of a volume can be read from the names alone,
//! after a crash too:
//!
//! | data | `….new` | `.json` | state | how it came about | what recovers it |
//! |---|---|---|---|---|---|
//! | yes | – | yes | [`Found::Volume`] | created, cloned | |
//! | yes | – | no, or unreadable | [`Found::Undescribed`] | damage | [`Pool::describe`] |
//! | – | yes | – | [`Found::Draft`] | create or clone killed | [`Pool::remove`] |
//! | – | yes | yes | [`Found::Draft`] | create or clone killed while committing | [`Pool::remove`] |
//! | – | – | yes | [`Found::Orphan`] | remove killed, or damage | [`Pool::remove`] |
//! | – | – | only `.json.part` | [`Found::Draft`] | create killed, then damage | [`Pool::remove`] |
//! | yes | yes | any | the volume, and [`Found::Stray`] | damage | [`Pool::remove`] takes both |
//! | two, or no regular file | any | any | [`Found::Damaged`] | damage | a person |
//!
//! What may be there besides:
//!
//! | file | what it is | how it came about | what recovers it |
//! |---|---|---|---|
//! | `<id>@<name>.ext4` | a snapshot | [`Snapshots::take_snapshot`] | |
//! | `<id>@<name>.ext4` without data | [`Found::Orphan`] | remove killed, or damage | [`Pool::remove`], or [`Snapshots::revert`] where it is described |
//! | `<id>@<name>.ext4.new` | nothing, but takes space | taking a snapshot killed, by whomever it was written | the next operation that changes the volume's data or snapshots |
//! | `<id>.ext4.revert` | nothing, but takes space | revert killed before its rename | the same |
//! | `<id>.json.part` | the rest of a description | its writing killed | the next writing goes over it |
//!
//! Data that is longer than its description says is a [`Pool::grow`] that was killed, and growing
//! again completes it; data of the size of a snapshot, with a description of another, is a
//! [`Snapshots::revert`] that was killed between its two renames, and reverting again completes
//! it.
//!
//! So the data file under its final name is the volume: the rename that gives it the name is the
//! instant at which the volume exists, and the unlink that takes it away the instant at which it
//! does not. The same holds for the file of a snapshot. The description is written before the
//! first and removed after the second. (A filesystem might bring these to disk in another order
//! before a power cut; then what is found is `Undescribed`, of a volume that nobody was told
//! about.)
//!
//! Creating and cloning flush three times: the description, the data, the directory; taking a
//! snapshot and reverting twice, unless the revert changes the size.

mod clones;
mod draft;
mod driver;
mod live;
mod names;
mod reflink_driver;
mod sharing;
mod snapshots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use sistemo_host::Changed;
use sistemo_host::directory::{self, Directory, FileError, Open};
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, VolumeId};

pub use self::driver::FileDriver;
pub use self::reflink_driver::{FileReflinkDriver, SetupCheck};

use self::draft::FileDraft;
use self::names::Kind;
use self::sharing::Copying;
use crate::content::RawContent;
use crate::contract::{
    Clones, Cost, Draft, Facts, Flaw, Format, Found, Location, OwnFilesystem, Pool, Progress,
    Sharing, Snapshots, Usage,
};
use crate::error::Subject;
use crate::marker::{self, FirstUse};
use crate::{Content, Description, PoolError, examination, place};

/// A pool of the `file` or `file-reflink` driver.
#[derive(Debug)]
pub struct FilePool {
    name: PoolName,
    catalogue: CatalogueId,
    directory: Directory,
    copying: Copying,
    setup_check: SetupCheck,
    /// What sharing costs, once it was tried.
    cost: OnceLock<Cost>,
}

/// What the system says about a name in the pool.
#[derive(Clone, Copy, Debug)]
struct Stat {
    regular: bool,
    size: Bytes,
    used: Bytes,
}

/// What stands where a volume's data should be.
enum Data {
    Missing,
    File { name: String, stat: Stat },
    Flawed(Flaw),
}

impl FilePool {
    /// Opens a pool's directory; on first use its last component and the pool's marker are made
    /// where they are missing. A relative `path` is taken from the current directory once, now.
    ///
    /// A crash in the middle leaves at most a directory without a marker, on which the next
    /// first use goes on. Of several processes that come first at once, one makes the marker.
    ///
    /// # Errors
    /// [`PoolError::Unavailable`] where the directory cannot be entered or made,
    /// [`PoolError::NoMarker`] where a known pool has none, [`PoolError::OtherCatalogue`] and
    /// [`PoolError::OtherPool`] where it has another's, [`PoolError::BadMarker`].
    pub fn open(
        name: PoolName,
        path: &Path,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<FilePool, PoolError> {
        let path = FilePool::absolute(&name, path)?;
        let directory = marker::enter(&path, &name, catalogue, first_use)?;
        Ok(FilePool {
            name,
            catalogue,
            directory,
            copying: Copying::WhereNotShared,
            setup_check: SetupCheck::Skip,
            cost: OnceLock::new(),
        })
    }

    /// Opens a pool as [`FilePool::open`] does that never copies data: where files cannot share
    /// it, making clones and snapshots fails. With a setup check, a first use there fails already,
    /// and so does [`Pool::probe`].
    ///
    /// # Errors
    /// As [`FilePool::open`], and [`PoolError::Unsuited`].
    pub fn open_reflink(
        name: PoolName,
        path: &Path,
        catalogue: CatalogueId,
        first_use: FirstUse,
        setup_check: SetupCheck,
    ) -> Result<FilePool, PoolError> {
        let path = FilePool::absolute(&name, path)?;
        let check = first_use == FirstUse::Allowed && setup_check == SetupCheck::Do;
        let suits = |directory: &Directory| {
            let unavailable = |error| marker::unavailable(&name, directory.path(), error);
            if check && !sharing::can_share(directory).map_err(unavailable)? {
                return Err(sharing::cannot_share(&name, directory.path()));
            }
            Ok(())
        };
        let directory = marker::enter_prepared(&path, &name, catalogue, first_use, suits)?;
        Ok(FilePool {
            name,
            catalogue,
            directory,
            copying: Copying::Never,
            setup_check,
            cost: OnceLock::new(),
        })
    }

    fn absolute(name: &PoolName, path: &Path) -> Result<PathBuf, PoolError> {
        std::path::absolute(path).map_err(|error| {
            marker::unavailable(name, path, FileError::new("make absolute", path, error))
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

    fn stat(&self, id: VolumeId, name: &str) -> Result<Option<Stat>, PoolError> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Stat {
                regular: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
                size: Bytes::new(u64::try_from(stat.st_size).unwrap_or(0)),
                // In units of 512 bytes whatever the filesystem's block is: stat(2).
                used: Bytes::new(u64::try_from(stat.st_blocks).unwrap_or(0) * 512),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => {
                let source = FileError::new("look up", self.directory.path_of(name), error);
                Err(self.subject(id).failed("look up", source))
            }
        }
    }

    fn locate(&self, id: VolumeId) -> Result<Data, PoolError> {
        let mut there = Vec::new();
        for name in names::every_data(id) {
            if let Some(stat) = self.stat(id, &name)? {
                there.push((name, stat));
            }
        }
        Ok(match there.as_slice() {
            [] => Data::Missing,
            [(name, stat)] if stat.regular => Data::File {
                name: name.clone(),
                stat: *stat,
            },
            [(name, _)] => Data::Flawed(Flaw::NotAFile {
                path: self.directory.path_of(name),
            }),
            several => Data::Flawed(Flaw::Several {
                names: several.iter().map(|(name, _)| name.clone()).collect(),
            }),
        })
    }

    /// The name and state of the data of a volume that exists.
    fn data(&self, id: VolumeId) -> Result<(String, Stat), PoolError> {
        match self.locate(id)? {
            Data::File { name, stat } => Ok((name, stat)),
            Data::Missing => Err(self.subject(id).missing()),
            Data::Flawed(flaw) => Err(self.subject(id).damaged(flaw)),
        }
    }

    fn check_no_data(&self, id: VolumeId) -> Result<(), PoolError> {
        match self.locate(id)? {
            Data::Missing => Ok(()),
            Data::File { .. } => Err(self.already_there(id)),
            Data::Flawed(flaw) => Err(self.subject(id).damaged(flaw)),
        }
    }

    fn facts_of(&self, name: &str, stat: Stat) -> Facts {
        Facts {
            path: self.directory.path_of(name),
            size: stat.size,
            used: stat.used,
            format: Format::Raw,
        }
    }

    /// The volume whose data is there; `None` where it was removed meanwhile.
    fn volume(&self, id: VolumeId, name: &str, stat: Stat) -> Result<Option<Found>, PoolError> {
        let facts = self.facts_of(name, stat);
        Ok(match self.read_description(id) {
            Ok(description) => Some(Found::Volume { description, facts }),
            Err(_) if self.stat(id, name)?.is_some() => Some(Found::Undescribed { id, facts }),
            Err(_) => None,
        })
    }

    fn read_description(&self, id: VolumeId) -> Result<Description, PoolError> {
        let name = names::description(id);
        place::read_description(&self.directory, &name, self.subject(id))
    }

    /// Writes a description that is durable when the directory is flushed the next time.
    fn stage_description(&self, description: &Description) -> Result<(), PoolError> {
        let (id, name) = (description.id, names::description(description.id));
        place::stage_description(&self.directory, &name, self.subject(id), description)
    }

    /// Writes a description beside the one there is: the names it has and is to have.
    fn prepare_description(
        &self,
        description: &Description,
    ) -> Result<(String, String), PoolError> {
        let name = names::description(description.id);
        let part = description
            .to_json()
            .map_err(|error| FileError::new("encode", self.path_of(&name), error))
            .and_then(|text| self.directory.prepare(&name, &text))
            .map_err(|source| {
                let subject = self.subject(description.id);
                subject.failed("write the description of", source)
            })?;
        Ok((part, name))
    }

    /// Gives a file its final name, durably, and leaves it under neither where that fails but
    /// for the last flush: it would be there, but perhaps not for long.
    fn publish(&self, temporary: &str, name: &str) -> Result<(), FileError> {
        let published = self.directory.publish(temporary, name);
        if published
            .as_ref()
            .is_err_and(|error| !error.is_already_there())
            && self.directory.contains(temporary).is_ok_and(|there| !there)
        {
            let _ = self.directory.unlink(name);
        }
        published
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.directory.path_of(name)
    }

    fn open_data(&self, id: VolumeId, access: Access) -> Result<RawContent, PoolError> {
        let (name, _) = self.data(id)?;
        self.open_file(id, &name, access)
    }

    /// Opens the data of a volume or snapshot that is there.
    fn open_file(&self, id: VolumeId, name: &str, access: Access) -> Result<RawContent, PoolError> {
        let how = match access {
            Access::ReadWrite => Open::ReadWrite,
            Access::ReadOnly => Open::Read,
        };
        let file = self
            .directory
            .file(name, how)
            .map_err(|source| self.subject(id).failed("open", source))?;
        let meta = file.metadata().map_err(|error| {
            let source = FileError::new("look up", self.path_of(name), error);
            self.subject(id).failed("open", source)
        })?;
        Ok(RawContent {
            file,
            path: self.path_of(name),
            pool: self.name.clone(),
            volume: id,
            size: Bytes::new(meta.len()),
            access,
        })
    }

    /// All files of a volume, without looking what they are.
    fn files_of(&self, id: VolumeId) -> Result<Vec<(Kind, String)>, PoolError> {
        let files = self.directory.files();
        let files = files.map_err(|source| self.subject(id).failed("list the files of", source))?;
        let ours = files
            .into_iter()
            .filter_map(|name| match names::parse(&name) {
                Some((of, kind)) if of == id => Some((kind, name)),
                _ => None,
            });
        Ok(ours.collect())
    }

    /// Begins a volume whose size is possible and of which nothing is there.
    fn begin(&self, description: &Description) -> Result<FileDraft<'_>, PoolError> {
        place::check_size(description.id, description.size)?;
        self.check_no_data(description.id)?;
        for name in names::every_draft(description.id) {
            if self.stat(description.id, &name)?.is_some() {
                return Err(PoolError::DraftThere {
                    pool: self.name.clone(),
                    volume: description.id,
                });
            }
        }
        FileDraft::begin(self, description)
    }

    /// What is there of one volume; `others` are its files by a listing, where there was one.
    fn state(
        &self,
        id: VolumeId,
        others: Option<&[(Kind, String)]>,
    ) -> Result<Option<Found>, PoolError> {
        let there = |name: &str| Ok::<_, PoolError>(self.stat(id, name)?.is_some());
        // The draft before the data: a draft that is committed meanwhile is then seen as one or
        // as the other, never as neither.
        let mut draft = false;
        for name in names::every_draft(id) {
            draft |= there(&name)?;
        }
        match self.locate(id)? {
            Data::File { name, stat } => return self.volume(id, &name, stat),
            Data::Flawed(flaw) => return Ok(Some(Found::Damaged { id, flaw })),
            Data::Missing => {}
        }
        let listed;
        let others = if let Some(others) = others {
            others
        } else {
            listed = self.files_of(id)?;
            &listed
        };
        let (mut snapshot, mut leftover) = (false, false);
        for (kind, name) in others {
            snapshot |= matches!(kind, Kind::Snapshot(_)) && there(name)?;
            leftover |= kind.is_leftover() && there(name)?;
        }
        let orphan = || Found::Orphan {
            id,
            description: self.read_description(id).ok(),
        };
        // Nobody removes what has snapshots for a draft.
        Ok(if snapshot {
            Some(orphan())
        } else if draft {
            Some(Found::Draft { id })
        } else if there(&names::description(id))? {
            Some(orphan())
        } else if leftover || there(&names::part(id))? {
            Some(Found::Draft { id })
        } else {
            None
        })
    }

    /// As [`place::check_size`], which only the pool of external drivers does not call itself.
    pub(crate) fn check_size(volume: VolumeId, size: Bytes) -> Result<(), PoolError> {
        place::check_size(volume, size)
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
}

impl Pool for FilePool {
    fn name(&self) -> &PoolName {
        &self.name
    }

    fn driver(&self) -> &'static str {
        match self.copying {
            Copying::WhereNotShared => driver::NAME,
            Copying::Never => reflink_driver::NAME,
        }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn probe(&self) -> Result<(), PoolError> {
        place::probe(&self.directory, &self.name, self.catalogue)?;
        // A pool that is full cannot be tried, and works.
        if self.setup_check == SetupCheck::Do
            && sharing::can_share(&self.directory).is_ok_and(|can| !can)
        {
            return Err(sharing::cannot_share(&self.name, self.directory.path()));
        }
        Ok(())
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        place::usage(self.directory.path(), &self.name)
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        let mut ours: BTreeMap<VolumeId, Vec<(Kind, String)>> = BTreeMap::new();
        let mut strays = Vec::new();
        let files = self.directory.files();
        for name in files.map_err(|error| self.unavailable(error))? {
            match names::parse(&name) {
                Some((id, kind)) => ours.entry(id).or_default().push((kind, name)),
                None if marker::is_marker(&name) => {}
                None => strays.push(name),
            }
        }
        let mut found = Vec::with_capacity(ours.len());
        for (id, files) in ours {
            let of_kind = |wanted: &'static Kind| {
                let matching = files.iter().filter(move |(kind, _)| kind == wanted);
                matching.map(|(_, name)| name.clone()).collect::<Vec<_>>()
            };
            let (data, drafts) = (of_kind(&Kind::Data), of_kind(&Kind::Draft));
            let volume = match data.as_slice() {
                [name] => match self.stat(id, name)? {
                    Some(stat) if stat.regular => self.volume(id, name, stat)?,
                    _ => None,
                },
                _ => None,
            };
            // Anything but a plain volume is looked at afresh: it may be changing meanwhile.
            let state = match volume {
                Some(volume) => Some(volume),
                None => self.state(id, Some(&files))?,
            };
            if !data.is_empty() {
                for draft in drafts {
                    // A listing may show both names of a file that is renamed meanwhile.
                    if self.stat(id, &draft)?.is_some() {
                        strays.push(draft);
                    }
                }
            }
            found.extend(state);
        }
        found.extend(strays.into_iter().map(|name| Found::Stray { name }));
        Ok(found)
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        self.state(id, None)
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        Ok(Box::new(self.begin(description)?))
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        let failed = |source| self.subject(id).failed("remove", source);
        // The data first: what is left of a removal is then no volume, and never taken for one.
        // Last the description, by which what is left is known.
        let data = names::every_data(id);
        let draft = names::every_draft(id);
        let others = self.files_of(id)?.into_iter();
        let others =
            others.filter(|(kind, _)| matches!(kind, Kind::Snapshot(_)) || kind.is_leftover());
        let names = data
            .chain(draft)
            .chain(others.map(|(_, name)| name))
            .chain([names::part(id), names::description(id)]);
        let mut changed = Changed::No;
        for name in names {
            if self.directory.unlink(&name).map_err(failed)? == Changed::Yes {
                changed = Changed::Yes;
            }
        }
        if changed == Changed::Yes {
            self.directory.flush().map_err(failed)?;
        }
        Ok(changed)
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
        let _ = self.sweep(id, "grow")?;
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
        self.data(description.id)?;
        if self
            .read_description(description.id)
            .is_ok_and(|old| old == *description)
        {
            // This is what recovers a volume after a kill: what that has left goes too.
            let _ = self.sweep(description.id, "describe")?;
            let part = names::part(description.id);
            let unlinked = self.directory.unlink(&part);
            let _ = unlinked
                .map_err(|source| self.subject(description.id).failed("describe", source))?;
            return Ok(Changed::No);
        }
        self.stage_description(description)?;
        let _ = self.sweep(description.id, "describe")?;
        self.directory
            .flush()
            .map_err(|source| self.subject(description.id).failed("describe", source))?;
        Ok(Changed::Yes)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        self.data(id)?;
        self.read_description(id)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        let (name, stat) = self.data(id)?;
        Ok(self.facts_of(&name, stat))
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        let real = match self.locate(id)? {
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
        let Some(own) = self.shares(&self.open_data(id, Access::ReadOnly)?)? else {
            return Ok(None);
        };
        let mut snapshots = BTreeMap::new();
        for (kind, file) in self.files_of(id)? {
            let Kind::Snapshot(name) = kind else { continue };
            let opened = match self.open_file(id, &file, Access::ReadOnly) {
                Ok(opened) => opened,
                // Deleted meanwhile.
                Err(_) if self.stat(id, &file)?.is_none() => continue,
                Err(error) => return Err(error),
            };
            let Some(shares) = self.shares(&opened)? else {
                return Ok(None);
            };
            snapshots.insert(name, Bytes::new(shares.alone));
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
