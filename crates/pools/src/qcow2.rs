//! The `qcow2` driver: overlays that freeze what they lie over, on any filesystem.
//!
//! A volume is its description, `<id>.json`, and data, `<id>.<generation>.qcow2`. The data of the
//! highest generation is what is written; it may lie over *layers*, data files that are never
//! written again, its own of lower generations or those of another volume. A snapshot,
//! `<id>@<name>.qcow2`, is an empty file over a layer. A clone or a snapshot *freezes* the data:
//! its volume gets an empty file of the next generation over it, and so does the clone or the
//! snapshot. So nobody is kept from writing to, growing or removing a volume that others were made
//! from: a layer goes when nothing lies over it any more.
//!
//! A file that a machine may have open is never renamed and never replaced, for QEMU opens such
//! files again by name. Layers have mode 0400, everything else 0600.
//!
//! The state of a volume can be read from the names, after a crash too:
//!
//! | `.json` | data | other | state | how it came about | what recovers it |
//! |---|---|---|---|---|---|
//! | yes | yes | any | [`Found::Volume`] | created | |
//! | unreadable | yes | any | [`Found::Undescribed`] | damage | [`Pool::describe`] |
//! | – | yes | none | [`Found::Undescribed`] | damage | [`Pool::describe`] |
//! | – | any | `….qcow2.new`, `.json.new` | [`Found::Draft`] | create or clone killed | [`Pool::remove`] |
//! | – | – | only `.json.part` | [`Found::Draft`] | describe killed, then damage | [`Pool::remove`] |
//! | – | any | `.json.gone` | [`Found::Orphan`] | remove killed | [`Pool::remove`] |
//! | – | any | `.layers` | nothing | removed; clones of it use its layers | |
//! | yes | – | none | [`Found::Orphan`] | damage | [`Pool::remove`] |
//! | yes or – | only layers, or none | snapshots | [`Found::Damaged`] | damage | a person |
//!
//! So the rename that gives the description its name is the instant at which a volume exists, and
//! the rename that takes it away the instant at which it does not.
//!
//! Beside a volume, these mean nothing: `….qcow2.new` is the rest of a snapshot, clone or revert
//! that was killed; data that is empty over what was the volume before is the first half of a
//! freezing, and as good as what it lies over, also while a machine goes on writing to that; data
//! of lower generations that nothing lies over is what a removal left. The next operation that
//! changes the volume's history removes them. Data that is larger than its description says is a
//! [`Pool::grow`] or [`Snapshots::revert`] that was killed; doing it
//! again completes it.
//!
//! What lies over what is told by the files' headers alone, and changes only under a lock of the
//! pool. A volume's data is durable before what was made from it is, so that nothing can come to
//! lie over a file that is still written:
//!
//! | operation | flushes, in order |
//! |---|---|
//! | create | data, description, directory |
//! | clone | the frozen data, the volume's new file, the clone's file, directory, description, directory |
//! | clone of a snapshot, or of what was not written since it was frozen | the clone's file, description, directory |
//! | snapshot | the frozen data, the volume's new file, the snapshot's file, directory, directory |
//! | snapshot of what was not written since it was frozen | the snapshot's file, directory |
//! | revert | the new file, the description where the size changes, directory |
//! | delete a snapshot | directory |
//! | remove | directory; twice where it has layers or snapshots |
//!
//! A flush of the directory right behind that of a new file is nearly free on filesystems with a
//! journal, which has everything by then.

mod chain;
mod content;
mod draft;
mod driver;
mod format;
mod history;
mod image;
mod layers;
mod names;
mod shorten;
mod switching;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_host::sparse::Shares;
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, SnapshotName, VolumeId};

pub use self::driver::Qcow2Driver;
pub(crate) use self::image::ImageError;

use self::chain::Chain;
use self::content::Qcow2Content;
use self::draft::Qcow2Draft;
use self::image::{Care, Image, Summary};
use self::layers::Layers;
use self::names::Kind;
use crate::contract::{
    Clones, Draft, Facts, Flaw, Format, Found, Location, OwnFilesystem, Pool, Progress, Sharing,
    Snapshots, Usage,
};
use crate::error::Subject;
use crate::examination::Part;
use crate::marker::{self, FirstUse};
use crate::{Content, Description, PoolError, examination, place};

/// A pool of the `qcow2` driver.
#[derive(Debug)]
pub struct Qcow2Pool {
    name: PoolName,
    catalogue: CatalogueId,
    directory: Directory,
}

/// The files that are a volume's, as a listing shows them.
#[derive(Debug, Default)]
struct Files {
    /// Ascending.
    generations: Vec<u64>,
    snapshots: Vec<SnapshotName>,
    /// Not published yet.
    new: Vec<String>,
}

impl Files {
    fn add(&mut self, name: String, kind: Kind) {
        match kind {
            Kind::Data(generation) => {
                self.generations.push(generation);
                self.generations.sort_unstable();
            }
            Kind::Snapshot(snapshot) => self.snapshots.push(snapshot),
            Kind::New => self.new.push(name),
            // These are looked up one by one, in an order that no rename can slip through.
            Kind::Description | Kind::NewDescription | Kind::Part | Kind::Gone | Kind::Layers => {}
        }
    }

    fn next_generation(&self) -> u64 {
        self.generations.last().map_or(1, |last| last + 1)
    }
}

/// What the files of a volume amount to.
#[derive(Debug)]
enum State {
    Nothing,
    Draft,
    Orphan(Option<Description>),
    /// The data file that is written.
    There(String),
    Damaged(Flaw),
}

/// Headers that were read already.
type Looked = HashMap<String, Summary>;

impl Qcow2Pool {
    /// Opens a pool's directory; on first use its last component and the pool's marker are made
    /// where they are missing. A relative `path` is taken from the current directory once, now.
    ///
    /// A crash in the middle leaves at most a directory without a marker, on which the next
    /// first use goes on.
    ///
    /// # Errors
    /// As [`FilePool::open`](crate::FilePool::open).
    pub fn open(
        name: PoolName,
        path: &Path,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Qcow2Pool, PoolError> {
        let path = std::path::absolute(path).map_err(|error| {
            marker::unavailable(&name, path, FileError::new("make absolute", path, error))
        })?;
        let directory = marker::enter(&path, &name, catalogue, first_use)?;
        let pool = Qcow2Pool {
            name,
            catalogue,
            directory,
        };
        if first_use == FirstUse::Allowed {
            pool.prepare_lock();
        }
        Ok(pool)
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

    fn path_of(&self, name: &str) -> PathBuf {
        self.directory.path_of(name)
    }

    fn is_there(&self, id: VolumeId, name: &str) -> Result<bool, PoolError> {
        let there = self.directory.contains(name);
        there.map_err(|source| self.subject(id).failed("look up", source))
    }

    /// Removes a file; one that is not there is no error.
    fn unlink(&self, id: VolumeId, name: &str) -> Result<(), PoolError> {
        match self.directory.unlink(name) {
            Ok(Changed::Yes | Changed::No) => Ok(()),
            Err(source) => Err(self.subject(id).failed("remove a file of", source)),
        }
    }

    fn flush(&self, id: VolumeId, action: &'static str) -> Result<(), PoolError> {
        let flushed = self.directory.flush();
        flushed.map_err(|source| self.subject(id).failed(action, source))
    }

    /// The mode of a file with its type; `None` where there is none.
    fn mode(&self, id: VolumeId, name: &str) -> Result<Option<u32>, PoolError> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_mode)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => {
                let source = FileError::new("look up", self.path_of(name), error);
                Err(self.subject(id).failed("look up", source))
            }
        }
    }

    fn names(&self) -> Result<Vec<String>, PoolError> {
        let files = self.directory.files();
        files.map_err(|error| self.unavailable(error))
    }

    fn files_of(&self, id: VolumeId) -> Result<Files, PoolError> {
        let mut files = Files::default();
        for name in self.names()? {
            match names::parse(&name) {
                Some((of, kind)) if of == id => files.add(name, kind),
                _ => {}
            }
        }
        Ok(files)
    }

    fn state(&self, id: VolumeId, files: &Files) -> Result<State, PoolError> {
        // In the order in which they are renamed, so that one that is being renamed is seen as
        // one or as the other.
        let mut new = !files.new.is_empty() || self.is_there(id, &names::new_description(id))?;
        let [part, new_part] = names::parts(id);
        new |= self.is_there(id, &new_part)?;
        let described = self.is_there(id, &names::description(id))?;
        let gone = self.is_there(id, &names::gone(id))?;
        let layers = self.is_there(id, &names::layers(id))?;
        if !described {
            if new {
                return Ok(State::Draft);
            }
            if gone {
                let old =
                    place::read_description(&self.directory, &names::gone(id), self.subject(id));
                return Ok(State::Orphan(old.ok()));
            }
            if layers {
                return Ok(State::Nothing);
            }
        }
        let Some(generation) = files.generations.last() else {
            return self.without_data(id, files, described, &part);
        };
        let top = names::data(id, *generation);
        match self.mode(id, &top)? {
            None => Ok(State::Nothing),
            // A freezing that was killed leaves it so with nothing over it yet. With something
            // over it, what was made to be written instead of it is lost.
            Some(mode) if mode & 0o200 == 0 && self.layers()?.users(&top).next().is_some() => {
                Ok(State::Damaged(Flaw::Missing))
            }
            Some(_) => Ok(State::There(top)),
        }
    }

    fn without_data(
        &self,
        id: VolumeId,
        files: &Files,
        described: bool,
        part: &str,
    ) -> Result<State, PoolError> {
        let first = names::data(id, 1);
        if let Some(mode) = self.mode(id, &first)?
            && FileType::from_raw_mode(mode) != FileType::RegularFile
        {
            let path = self.path_of(&first);
            return Ok(State::Damaged(Flaw::NotAFile { path }));
        }
        Ok(if !files.snapshots.is_empty() {
            State::Damaged(Flaw::Missing)
        } else if described {
            State::Orphan(self.read_description(id).ok())
        } else if self.is_there(id, part)? {
            State::Draft
        } else {
            State::Nothing
        })
    }

    /// The name of the data file of a volume that exists.
    fn top(&self, id: VolumeId) -> Result<String, PoolError> {
        match self.state(id, &self.files_of(id)?)? {
            State::There(top) => Ok(top),
            State::Damaged(flaw) => Err(self.subject(id).damaged(flaw)),
            State::Nothing | State::Draft | State::Orphan(_) => Err(self.subject(id).missing()),
        }
    }

    fn check_no_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        match self.state(id, &self.files_of(id)?)? {
            State::There(_) => Err(PoolError::AlreadyThere {
                pool: self.name.clone(),
                volume: id,
            }),
            State::Damaged(flaw) => Err(self.subject(id).damaged(flaw)),
            State::Nothing | State::Draft | State::Orphan(_) => Ok(()),
        }
    }

    /// Checks that a volume can be made, finishing its removal where that was killed, and says of
    /// which generation its data will be.
    fn check_free(&self, id: VolumeId) -> Result<u64, PoolError> {
        if let State::Orphan(_) = self.state(id, &self.files_of(id)?)? {
            let _ = self.remove(id)?;
        }
        self.check_vacant(id)
    }

    fn check_vacant(&self, id: VolumeId) -> Result<u64, PoolError> {
        let files = self.files_of(id)?;
        match self.state(id, &files)? {
            State::Draft => Err(PoolError::DraftThere {
                pool: self.name.clone(),
                volume: id,
            }),
            _ => self.check_no_volume(id).map(|()| files.next_generation()),
        }
    }

    /// Makes the file of a new volume under a draft's name.
    fn new_image(
        &self,
        name: &str,
        description: &Description,
        backing: Option<&str>,
    ) -> Result<Image, PoolError> {
        let id = description.id;
        let new = names::new(name);
        let file = match self.directory.file(&new, Open::CreateNew) {
            Ok(file) => file,
            Err(error) if error.is_already_there() => {
                return Err(PoolError::DraftThere {
                    pool: self.name.clone(),
                    volume: id,
                });
            }
            Err(error) => return Err(self.subject(id).failed("create", error)),
        };
        let size = description.size.get();
        Image::create(file, self.path_of(&new), size, backing, None).map_err(|error| {
            self.discard(&[new]);
            self.subject(id).image("create", error)
        })
    }

    /// Makes a volume exist whose flushed data has a draft's name. Where that fails, its data is
    /// gone.
    fn bring_to_be(&self, data: &str, description: &Description) -> Result<(), PoolError> {
        let id = description.id;
        let (new, new_json) = (names::new(data), names::new_description(id));
        let staged =
            place::stage_description(&self.directory, &new_json, self.subject(id), description);
        if let Err(error) = staged {
            self.discard(&[new]);
            return Err(error);
        }
        let failed = |source: FileError| {
            if source.is_already_there() {
                return PoolError::AlreadyThere {
                    pool: self.name.clone(),
                    volume: id,
                };
            }
            self.subject(id).failed("create", source)
        };
        if let Err(error) = self.directory.publish_unflushed(&new, data) {
            self.discard(&[new, new_json]);
            return Err(failed(error));
        }
        let json = names::description(id);
        if let Err(error) = self.directory.publish_unflushed(&new_json, &json) {
            self.discard(&[data.to_owned(), new_json]);
            return Err(failed(error));
        }
        self.directory.flush().map_err(|error| {
            // The volume is there, but perhaps not for long.
            self.discard(&[json, data.to_owned()]);
            failed(error)
        })
    }

    /// Removes files that are of no use to anyone, as far as that is possible.
    fn discard(&self, names: &[String]) {
        for name in names {
            if let Err(error) = self.directory.unlink(name) {
                tracing::warn!(%error, "a file that is of no use stays");
            }
        }
    }

    fn read_description(&self, id: VolumeId) -> Result<Description, PoolError> {
        let name = names::description(id);
        place::read_description(&self.directory, &name, self.subject(id))
    }

    fn stage_description(&self, description: &Description) -> Result<(), PoolError> {
        let (id, name) = (description.id, names::description(description.id));
        place::stage_description(&self.directory, &name, self.subject(id), description)
    }

    fn look(&self, name: &str, looked: &mut Looked) -> Result<Summary, ImageError> {
        if let Some(summary) = looked.get(name) {
            return Ok(summary.clone());
        }
        let summary = chain::look(&self.directory, name)?;
        looked.insert(name.to_owned(), summary.clone());
        Ok(summary)
    }

    fn facts_of(&self, id: VolumeId, top: &str, looked: &mut Looked) -> Result<Facts, ImageError> {
        let summary = self.look(top, looked)?;
        let (size, mut used) = (summary.header.size, summary.used);
        let mut beneath = chain::layer_under(top, &summary)?.map(str::to_owned);
        // Layers come to a volume from above: below the first of another's, all are others'.
        for _ in 0..chain::DEEPEST {
            let Some(name) = beneath else { break };
            if !matches!(names::parse_data(&name), Some((of, _)) if of == id) {
                break;
            }
            // What is wrong with a layer is for `verify` to say.
            let Ok(summary) = self.look(&name, looked) else {
                break;
            };
            used += summary.used;
            beneath = summary.header.backing;
        }
        Ok(Facts {
            path: self.path_of(top),
            size: Bytes::new(size),
            used: Bytes::new(used),
            format: Format::Qcow2,
        })
    }

    /// How much of what a file and the layers under it take others use too.
    fn shares(&self, id: VolumeId, layers: &Layers, top: &str) -> Result<Shares, PoolError> {
        let failed = |error| self.subject(id).image("look up", error);
        let chain = chain::names_down(&self.directory, top).map_err(failed)?;
        let is_own = |name: &str| chain.iter().any(|file| file == name);
        let mut shares = Shares::default();
        for name in &chain {
            let used = chain::look(&self.directory, name).map_err(failed)?.used;
            if layers.all_over(name).into_iter().all(is_own) {
                shares.alone += used;
            } else {
                shares.shared += used;
            }
        }
        Ok(shares)
    }

    fn look_at(
        &self,
        id: VolumeId,
        files: &Files,
        looked: &mut Looked,
    ) -> Result<Option<Found>, PoolError> {
        Ok(match self.state(id, files)? {
            State::Nothing => None,
            State::Draft => Some(Found::Draft { id }),
            State::Orphan(description) => Some(Found::Orphan { id, description }),
            State::Damaged(flaw) => Some(Found::Damaged { id, flaw }),
            State::There(top) => match self.facts_of(id, &top, looked) {
                Ok(facts) => Some(match self.read_description(id) {
                    Ok(description) => Found::Volume { description, facts },
                    Err(_) => Found::Undescribed { id, facts },
                }),
                Err(ImageError::File(source)) => {
                    return Err(self.subject(id).failed("look up", source));
                }
                Err(fault) => Some(Found::Damaged {
                    id,
                    flaw: Flaw::Unreadable {
                        reason: fault.to_string(),
                    },
                }),
            },
        })
    }

    /// Looks until what is seen is plain, or the same twice: a volume may be changing meanwhile,
    /// and a listing is not of one instant.
    fn settle(
        &self,
        id: VolumeId,
        files: &Files,
        looked: &mut Looked,
    ) -> Result<Option<Found>, PoolError> {
        let mut seen = self.look_at(id, files, looked)?;
        for _ in 0..4 {
            if matches!(
                seen,
                None | Some(Found::Volume { .. } | Found::Draft { .. })
            ) {
                break;
            }
            let again = self.look_at(id, &self.files_of(id)?, &mut Looked::new())?;
            if again == seen {
                break;
            }
            seen = again;
        }
        Ok(seen)
    }

    /// Opens the data of a volume that exists.
    fn open_chain(&self, id: VolumeId, access: Access) -> Result<Chain, PoolError> {
        let top = self.top(id)?;
        let failed = |error| self.subject(id).image("open", error);
        match access {
            Access::ReadOnly => Chain::open(&self.directory, &top, None).map_err(failed),
            Access::ReadWrite => {
                self.thaw(id, &top)?;
                Chain::open(&self.directory, &top, Some(Care::PowerCut)).map_err(failed)
            }
        }
    }

    /// Makes data writable again that a freezing was killed over, and over which nothing lies.
    fn thaw(&self, id: VolumeId, top: &str) -> Result<(), PoolError> {
        if self.mode(id, top)?.is_none_or(|mode| mode & 0o200 != 0) {
            return Ok(());
        }
        chain::open_image(&self.directory, top, None)
            .and_then(|image| image.set_mode(Mode::RUSR | Mode::WUSR))
            .map_err(|error| self.subject(id).image("open", error))
    }

    fn content_of(&self, id: VolumeId, chain: Chain, access: Access) -> Qcow2Content {
        let size = chain.images.first().map_or(0, Image::size);
        Qcow2Content {
            chain,
            pool: self.name.clone(),
            volume: id,
            size: Bytes::new(size),
            access,
        }
    }

    /// Whether a volume never was frozen and lies over nothing: then it shares no layer, and that
    /// is known without looking at all others.
    fn stands_alone(&self, id: VolumeId, files: &Files) -> Result<bool, PoolError> {
        if files.generations != [1] || !files.snapshots.is_empty() {
            return Ok(false);
        }
        let name = names::data(id, 1);
        let writable = self.mode(id, &name)?.is_some_and(|mode| mode & 0o200 != 0);
        let summary = chain::look(&self.directory, &name);
        Ok(writable && summary.is_ok_and(|summary| summary.header.backing.is_none()))
    }

    /// What is wrong with the files of a volume and its snapshots; their data is not read.
    fn check(&self, id: VolumeId, top: &str, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        let mut flaws = Vec::new();
        match self.check_chain(top) {
            Ok(size) if size == recorded.get() => {}
            Ok(size) => flaws.push(Flaw::WrongSize {
                recorded,
                real: Bytes::new(size),
            }),
            Err(ImageError::File(source)) => {
                return Err(self.subject(id).failed("verify", source));
            }
            Err(fault) => flaws.push(Flaw::Unreadable {
                reason: fault.to_string(),
            }),
        }
        for snapshot in self.files_of(id)?.snapshots {
            let name = names::snapshot(id, &snapshot);
            match Chain::open(&self.directory, &name, None) {
                Ok(_) => {}
                Err(ImageError::File(source)) => {
                    return Err(self.subject(id).failed("verify", source));
                }
                Err(fault) => flaws.push(Flaw::Unreadable {
                    reason: format!("of its snapshot {snapshot}, {fault}"),
                }),
            }
        }
        Ok(flaws)
    }

    /// Looks at the tables of all files that a volume and its snapshots lie in, each once, and
    /// says of each what it holds itself, or what is wrong.
    fn all_files(&self, id: VolumeId) -> Result<Vec<Result<Part, Flaw>>, PoolError> {
        let snapshots = self.files_of(id)?.snapshots;
        let tops = snapshots.iter().map(|name| names::snapshot(id, name));
        let mut looked = BTreeSet::new();
        let mut found = Vec::new();
        for top in std::iter::once(self.top(id)?).chain(tops) {
            let chain = match self.checked_chain(&top, &looked) {
                Ok(chain) => chain,
                Err(ImageError::File(source)) => {
                    return Err(self.subject(id).failed("examine", source));
                }
                Err(fault) => {
                    let reason = fault.to_string();
                    found.push(Err(Flaw::Unreadable { reason }));
                    continue;
                }
            };
            for image in chain.images {
                let name = image.name();
                if looked.insert(name.clone()) {
                    // Each file for itself: what it holds, but not what shows through it.
                    let images = vec![image];
                    let content = self.content_of(id, Chain { images }, Access::ReadOnly);
                    found.push(Part::of(format!("of {name}, the"), Box::new(content)));
                }
            }
        }
        Ok(found)
    }

    /// Opens a chain and looks for what is wrong with it but in files that were looked at.
    fn checked_chain(&self, top: &str, looked: &BTreeSet<String>) -> Result<Chain, ImageError> {
        let chain = Chain::open(&self.directory, top, None)?;
        for image in &chain.images {
            if !looked.contains(&image.name()) {
                image.check()?;
            }
        }
        for pair in chain.images.windows(2) {
            if let [upper, lower] = pair {
                upper.check_over(lower)?;
            }
        }
        Ok(chain)
    }

    fn check_chain(&self, top: &str) -> Result<u64, ImageError> {
        let chain = self.checked_chain(top, &BTreeSet::new())?;
        Ok(chain.images.first().map_or(0, Image::size))
    }
}

impl Pool for Qcow2Pool {
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
        place::probe(&self.directory, &self.name, self.catalogue)
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        place::usage(self.directory.path(), &self.name)
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        let mut ours: BTreeMap<VolumeId, Files> = BTreeMap::new();
        let mut strays = Vec::new();
        for name in self.names()? {
            match names::parse(&name) {
                Some((id, kind)) => ours.entry(id).or_default().add(name, kind),
                None if marker::is_marker(&name) => {}
                None => strays.push(Found::Stray { name }),
            }
        }
        let mut looked = Looked::new();
        let mut found = Vec::with_capacity(ours.len());
        for (id, files) in ours {
            found.extend(self.settle(id, &files, &mut looked)?);
        }
        found.extend(strays);
        Ok(found)
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        self.settle(id, &self.files_of(id)?, &mut Looked::new())
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        place::check_size(description.id, description.size)?;
        let generation = self.check_free(description.id)?;
        Ok(Box::new(Qcow2Draft::begin(self, description, generation)?))
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        let failed = |source| self.subject(id).failed("remove", source);
        let lock = self.lock(id, "remove")?;
        let files = self.files_of(id)?;
        if let State::Nothing = self.state(id, &files)? {
            return Ok(Changed::No);
        }
        let stands_alone = self.stands_alone(id, &files)?;
        let (json, gone, layers) = (names::description(id), names::gone(id), names::layers(id));
        if self.is_there(id, &json)? {
            match self.directory.rename_unflushed(&json, &gone) {
                Ok(()) => {}
                // A full filesystem may have no room for another name, but always for one less.
                Err(error) if stands_alone && error.is_full() => {
                    self.unlink(id, &names::data(id, 1))?;
                    self.unlink(id, &json)?;
                }
                Err(error) => return Err(failed(error)),
            }
        } else if !(self.is_there(id, &gone)? || self.is_there(id, &layers)?) {
            // So that what stays of it is known for what it is.
            self.directory
                .replace_unflushed(&gone, b"")
                .map_err(failed)?;
        }
        let snapshots = files.snapshots.iter().map(|name| names::snapshot(id, name));
        let parts = names::parts(id).into_iter();
        for name in snapshots
            .chain(files.new.iter().cloned())
            .chain(parts)
            .chain([names::new_description(id)])
        {
            self.unlink(id, &name)?;
        }
        let has_users = if stands_alone {
            self.unlink(id, &names::data(id, 1))?;
            false
        } else {
            self.flush(id, "remove")?;
            self.remove_unused(Some(id))?
        };
        if has_users {
            if self.is_there(id, &gone)? {
                self.directory
                    .rename_unflushed(&gone, &layers)
                    .map_err(failed)?;
            }
        } else {
            self.unlink(id, &gone)?;
            self.unlink(id, &layers)?;
        }
        self.flush(id, "remove")?;
        drop(lock);
        Ok(Changed::Yes)
    }

    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError> {
        place::check_size(id, to)?;
        let mut chain = self.open_chain(id, Access::ReadWrite)?;
        let mut description = self.read_description(id)?;
        let Some((top, beneath)) = chain.images.split_first_mut() else {
            return Err(self.subject(id).missing());
        };
        let size = Bytes::new(top.size());
        let growth = place::check_growth(self.subject(id), size, description.size, to)?;
        let failed = |error| self.subject(id).image("grow", error);
        // Growing what is cut short would hide that.
        top.check().map_err(failed)?;
        beneath
            .first()
            .map_or(Ok(()), |layer| top.check_over(layer))
            .map_err(failed)?;
        if growth == Changed::No {
            return Ok(Changed::No);
        }
        if to > size {
            top.grow(to.get()).map_err(failed)?;
        }
        description.size = to;
        if let Err(error) = self.stage_description(&description) {
            // The new part holds nothing yet. Where this fails too, it is as after a crash.
            let _ = top.shrink_back(size.get());
            return Err(error);
        }
        self.flush(id, "grow")?;
        Ok(Changed::Yes)
    }

    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        let chain = self.open_chain(id, access)?;
        let top = chain.images.first().map(|image| image.path().to_owned());
        top.map(Location::Qcow2File)
            .ok_or_else(|| self.subject(id).missing())
    }

    fn close(&self, _id: VolumeId) -> Result<(), PoolError> {
        Ok(())
    }

    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError> {
        let chain = self.open_chain(id, access)?;
        Ok(Box::new(self.content_of(id, chain, access)))
    }

    fn describe(&self, description: &Description) -> Result<Changed, PoolError> {
        let id = description.id;
        self.top(id)?;
        if self
            .read_description(id)
            .is_ok_and(|old| old == *description)
        {
            return Ok(Changed::No);
        }
        self.stage_description(description)?;
        self.flush(id, "describe")?;
        Ok(Changed::Yes)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        self.top(id)?;
        self.read_description(id)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        let top = self.top(id)?;
        let facts = self.facts_of(id, &top, &mut Looked::new());
        facts.map_err(|error| self.subject(id).image("look up", error))
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        let top = match self.state(id, &self.files_of(id)?)? {
            State::There(top) => top,
            State::Damaged(flaw) => return Ok(vec![flaw]),
            State::Nothing | State::Draft | State::Orphan(_) => return Ok(vec![Flaw::Missing]),
        };
        let mut flaws = self.check(id, &top, recorded)?;
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
        let mut flaws = self.verify(id, recorded)?;
        if flaws.iter().any(examination::is_in_the_way) {
            return Ok(flaws);
        }
        let mut parts = Vec::new();
        for found in self.all_files(id)? {
            match found {
                Ok(part) => parts.push(part),
                Err(flaw) => flaws.push(flaw),
            }
        }
        flaws.extend(examination::read_all(&parts, progress));
        Ok(flaws)
    }

    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError> {
        let top = self.top(id)?;
        let layers = self.layers()?;
        if !layers.is_complete() {
            // What cannot be read might lie over anything.
            return Ok(None);
        }
        let own = self.shares(id, &layers, &top)?;
        let mut snapshots = BTreeMap::new();
        for snapshot in self.files_of(id)?.snapshots {
            let file = names::snapshot(id, &snapshot);
            match self.shares(id, &layers, &file) {
                Ok(shares) => drop(snapshots.insert(snapshot, Bytes::new(shares.alone))),
                // Deleted meanwhile.
                Err(_) if !self.is_there(id, &file)? => {}
                Err(error) => return Err(error),
            }
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
