//! A pool of an external driver: the contract, on top of the protocol.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::Value;
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError};
use sistemo_model::{Access, Bytes, CatalogueId, PoolName, SnapshotName, VolumeId};

use super::call::{self, Answer};
use super::content::{self, Wanted};
use super::draft::ExternalDraft;
use super::driver::ExternalDriver;
use super::fault::DriverFault;
use super::locks;
use super::protocol::{
    CapabilityPower, ChangedAnswer, DIRECTORY, Done, ErrorBody, ErrorCode, FoundAnswer,
    InspectAnswer, ListAnswer, LocationAnswer, Operation, PROTOCOL, PoolAnswer, RESERVED, Request,
    RequestPool, SharingAnswer, UsageAnswer,
};
use crate::config::PoolConfig;
use crate::contract::{
    Clones, Draft, Facts, Flaw, Format, Found, Location, OwnFilesystem, Pool, Progress, Sharing,
    Snapshots, Usage,
};
use crate::error::Subject;
use crate::file::FilePool;
use crate::marker::{self, FirstUse};
use crate::{Content, Description, PoolError, examination};

/// A pool of an external driver.
///
/// Its directory holds the marker and the locks of this program, and what the driver keeps
/// there. Nothing of it is held open: the driver is given its path.
#[derive(Debug)]
pub struct ExternalPool {
    pub(super) name: PoolName,
    pub(super) driver: ExternalDriver,
    catalogue: CatalogueId,
    directory: PathBuf,
    options: BTreeMap<String, String>,
    costs: OnceLock<PoolAnswer>,
}

/// A volume that is there, as its driver sees it.
pub(super) struct Seen {
    id: VolumeId,
    description: Result<Description, BadDescription>,
    pub(super) size: Bytes,
    used: Bytes,
    location: Location,
    flaws: Vec<String>,
}

enum BadDescription {
    None,
    Unreadable(serde_json::Error),
}

/// What there is of one volume.
enum State {
    Volume(Seen),
    /// A draft, or what a killed operation left.
    Draft(VolumeId),
    Damaged(VolumeId, Flaw),
}

impl ExternalPool {
    /// Opens a pool; on first use its directory's last component and its marker are made, and the
    /// driver sets up what it needs.
    ///
    /// A crash in the middle leaves a directory that the next first use goes on with.
    ///
    /// # Errors
    /// As [`FilePool::open`], and what the driver says. What was made on the way is gone again.
    pub fn open(
        driver: ExternalDriver,
        config: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<ExternalPool, PoolError> {
        let name = config.name.clone();
        let Some(directory) = config.directory.as_deref() else {
            return Err(PoolError::NoPlace { pool: name });
        };
        let directory = std::path::absolute(directory).map_err(|error| {
            let source = FileError::new("make absolute", directory, error);
            marker::unavailable(&name, directory, source)
        })?;
        let mut options = config.options.clone();
        options.insert(DIRECTORY.to_owned(), directory.display().to_string());
        let pool = ExternalPool {
            name,
            driver,
            catalogue,
            directory,
            options,
            costs: OnceLock::new(),
        };
        match first_use {
            FirstUse::Known => pool.check_marker().map(|_| ())?,
            FirstUse::Allowed => pool.set_up()?,
        }
        Ok(pool)
    }

    fn set_up(&self) -> Result<(), PoolError> {
        let path = &self.directory;
        let (made_directory, made_marker) = match Directory::open(path) {
            Ok(directory) => {
                let unmarked = marker::check(&directory, &self.name, self.catalogue);
                let unmarked = matches!(unmarked, Err(PoolError::NoMarker { .. }));
                (false, unmarked)
            }
            Err(error) => (error.is_not_found(), true),
        };
        let _ = marker::enter(path, &self.name, self.catalogue, FirstUse::Allowed)?;
        match self.ask(Operation::Setup) {
            Ok(costs) => {
                let _ = self.costs.set(costs);
                Ok(())
            }
            Err(error) => {
                if made_marker {
                    self.take_back(made_directory);
                }
                Err(error)
            }
        }
    }

    /// Takes back what a first use made that came to nothing.
    fn take_back(&self, made_directory: bool) {
        let path = &self.directory;
        if let Err(error) = locks::remove(path) {
            tracing::warn!(%error, "the locks of a pool that was not made stay");
        }
        if let Err(error) = marker::remove(path, &self.name, self.catalogue) {
            tracing::warn!(%error, "the marker of a pool that was not made stays");
        }
        if made_directory {
            // It stays where the driver has put something into it.
            let _ = std::fs::remove_dir(path);
        }
    }

    fn check_marker(&self) -> Result<Directory, PoolError> {
        let directory = Directory::open(&self.directory)
            .map_err(|source| marker::unavailable(&self.name, &self.directory, source))?;
        marker::check(&directory, &self.name, self.catalogue)?;
        Ok(directory)
    }

    pub(super) fn subject(&self, volume: VolumeId) -> Subject<'_> {
        Subject {
            pool: &self.name,
            volume,
        }
    }

    pub(super) fn wanted(&self, volume: VolumeId, access: Access) -> Wanted<'_> {
        Wanted {
            pool: &self.name,
            volume,
            access,
        }
    }

    /// Makes the error of something that the driver did wrong.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        fault: impl Into<DriverFault>,
    ) -> PoolError {
        PoolError::Driver {
            driver: self.driver.name().to_owned(),
            operation,
            pool: self.name.clone(),
            source: fault.into(),
        }
    }

    pub(super) fn unreadable(&self, operation: &'static str, location: &Location) -> PoolError {
        let format = format_of(location).as_str();
        self.failed(operation, DriverFault::Format { format })
    }

    pub(super) fn check_path(&self, operation: &'static str, path: &Path) -> Result<(), PoolError> {
        if path.is_absolute() {
            return Ok(());
        }
        let path = path.to_owned();
        Err(self.failed(operation, DriverFault::NotAbsolute { path }))
    }

    /// Asks the driver. A pool without its marker is never shown to it.
    pub(super) fn ask<A: DeserializeOwned>(&self, operation: Operation) -> Result<A, PoolError> {
        self.check_marker()?;
        let word = operation.word();
        let limits = self.driver.limits();
        let (directory, driver) = (&self.directory, self.driver.name());
        let held = locks::acquire(directory, &operation, driver, limits.patience)
            .map_err(|error| self.failed(word, DriverFault::Busy(error)))?;
        let request = Request {
            protocol: PROTOCOL,
            operation,
            pool: Some(RequestPool {
                pool: self.name.clone(),
                catalogue: self.catalogue,
                options: self.options.clone(),
            }),
        };
        match call::call(self.driver.path(), &request, limits, &held) {
            Ok(Answer::Done(answer)) => Ok(answer),
            Ok(Answer::Refused(error)) => Err(self.refused(&request.operation, error)),
            Err(fault) => Err(self.failed(word, fault)),
        }
    }

    /// Asks for a volume that is not there, and says what is there where something is. Where that
    /// fails otherwise, what it left is removed; never a volume, were it there against all that
    /// the driver says.
    pub(super) fn ask_new<A: DeserializeOwned>(
        &self,
        operation: Operation,
    ) -> Result<A, PoolError> {
        let volume = operation.volume();
        let error = match self.ask(operation) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let left = volume.map(|volume| self.look(volume));
        match (error, left) {
            (PoolError::AlreadyThere { pool, volume }, Some(Ok(Some(State::Draft(_))))) => {
                Err(PoolError::DraftThere { pool, volume })
            }
            (error @ PoolError::AlreadyThere { .. }, _) => Err(error),
            (error, Some(Ok(Some(State::Draft(volume))))) => {
                if let Err(error) = self.ask::<ChangedAnswer>(Operation::Remove { volume }) {
                    tracing::warn!(%error, "what is left of a volume that was not made stays");
                }
                Err(error)
            }
            (error, _) => Err(error),
        }
    }

    /// Makes of a driver's error what the contract calls it.
    fn refused(&self, operation: &Operation, error: ErrorBody) -> PoolError {
        let ErrorBody { code, message } = error;
        let pool = || self.name.clone();
        let directory = || self.directory.clone();
        let said = |message: String, kind| {
            FileError::new("use", directory(), io::Error::new(kind, message))
        };
        let action = action(operation);
        let snapshot = operation.snapshot().cloned();
        match (code, operation.volume(), snapshot) {
            (ErrorCode::AlreadyThere, Some(volume), _) => PoolError::AlreadyThere {
                pool: pool(),
                volume,
            },
            (ErrorCode::NoSuchVolume, Some(volume), _) => PoolError::NoSuchVolume {
                pool: pool(),
                volume: operation.source().unwrap_or(volume),
            },
            (ErrorCode::NoSuchSnapshot, Some(volume), Some(snapshot)) => {
                PoolError::NoSuchSnapshot {
                    pool: pool(),
                    volume: operation.source().unwrap_or(volume),
                    snapshot,
                }
            }
            (ErrorCode::SnapshotThere, Some(volume), Some(snapshot)) => PoolError::SnapshotThere {
                pool: pool(),
                volume,
                snapshot,
            },
            (ErrorCode::Full, Some(volume), _) => PoolError::Full {
                action,
                pool: pool(),
                volume,
                source: said(message, io::ErrorKind::StorageFull),
            },
            (ErrorCode::ReadOnly, Some(volume), _) => PoolError::ReadOnly {
                action,
                pool: pool(),
                volume,
                source: said(message, io::ErrorKind::ReadOnlyFilesystem),
            },
            (ErrorCode::TooLarge, Some(volume), _) => PoolError::TooLarge {
                action,
                pool: pool(),
                volume,
                source: said(message, io::ErrorKind::FileTooLarge),
            },
            (ErrorCode::BadSize, Some(volume), _) if operation.size().is_some() => {
                PoolError::BadSize {
                    volume,
                    size: operation.size().unwrap_or_default(),
                }
            }
            (ErrorCode::Damaged, Some(volume), _) => PoolError::Damaged {
                pool: pool(),
                volume,
                flaw: Flaw::Unreadable { reason: message },
            },
            (ErrorCode::Unsuited, _, _) => PoolError::Unsuited {
                pool: pool(),
                directory: directory(),
                reason: message,
            },
            (ErrorCode::Unavailable, _, _) => PoolError::Unavailable {
                pool: pool(),
                directory: directory(),
                source: said(message, io::ErrorKind::Other),
            },
            (ErrorCode::Unsupported, _, _) => {
                let fault = match power_of(operation) {
                    Some(power) => DriverFault::Unclaimed { power, message },
                    None => DriverFault::Said {
                        code: code.word(),
                        message,
                    },
                };
                self.failed(operation.word(), fault)
            }
            _ => {
                let code = code.word();
                self.failed(operation.word(), DriverFault::Said { code, message })
            }
        }
    }

    /// What a volume's description looks like in a request.
    pub(super) fn written(&self, description: &Description) -> Result<Value, PoolError> {
        description
            .to_value()
            .map_err(|source| PoolError::BadDescription {
                pool: self.name.clone(),
                volume: description.id,
                source,
            })
    }

    /// What is there of a volume, in the driver's view; `None` where there is nothing. It is what
    /// stays so for whoever has the volume's lock: a driver that outlived its caller is waited for.
    fn look(&self, id: VolumeId) -> Result<Option<State>, PoolError> {
        let operation = Operation::Inspect { volume: id };
        let word = operation.word();
        self.check_marker()?;
        let patience = self.driver.limits().patience;
        locks::await_orphans(&self.directory, id, patience)
            .map_err(|error| self.failed(word, DriverFault::Busy(error)))?;
        let InspectAnswer { found } = self.ask(operation)?;
        let Some(found) = found else {
            return Ok(None);
        };
        let answered = found.volume();
        if answered != id {
            let asked = id;
            return Err(self.failed(word, DriverFault::OtherVolume { asked, answered }));
        }
        self.state(word, found).map(Some)
    }

    fn state(&self, word: &'static str, found: FoundAnswer) -> Result<State, PoolError> {
        let (id, description, size, used, location, flaws) = match found {
            FoundAnswer::Remains { volume } => return Ok(State::Draft(volume)),
            FoundAnswer::Damaged { volume, flaws } => {
                let reason = if flaws.is_empty() {
                    "its driver says so".to_owned()
                } else {
                    flaws.join("; ")
                };
                return Ok(State::Damaged(volume, Flaw::Unreadable { reason }));
            }
            FoundAnswer::Volume {
                volume,
                description,
                size,
                used,
                location,
                flaws,
            } => (volume, description, size, used, location, flaws),
        };
        self.check_path(word, &location.path)?;
        let description = match description {
            None => Err(BadDescription::None),
            Some(value) => Description::from_value(&value, id).map_err(BadDescription::Unreadable),
        };
        if description
            .as_ref()
            .is_ok_and(|described| described.unfinished)
        {
            return Ok(State::Draft(id));
        }
        Ok(State::Volume(Seen {
            id,
            description,
            size,
            used,
            location: location.into(),
            flaws,
        }))
    }

    /// A volume that exists.
    pub(super) fn volume(&self, id: VolumeId) -> Result<Seen, PoolError> {
        match self.look(id)? {
            Some(State::Volume(seen)) => Ok(seen),
            Some(State::Draft(_)) | None => Err(self.subject(id).missing()),
            Some(State::Damaged(_, flaw)) => Err(self.subject(id).damaged(flaw)),
        }
    }

    pub(super) fn described(&self, seen: Seen) -> Result<Description, PoolError> {
        let volume = seen.id;
        seen.description.map_err(|bad| match bad {
            BadDescription::None => self.subject(volume).damaged(Flaw::Undescribed),
            BadDescription::Unreadable(source) => PoolError::BadDescription {
                pool: self.name.clone(),
                volume,
                source,
            },
        })
    }

    /// What the driver says that its powers cost here. Where it cannot be asked, the power's own
    /// operation will say why, and a copy is the careful answer until then.
    pub(super) fn costs(&self) -> PoolAnswer {
        *self.costs.get_or_init(|| {
            self.ask(Operation::Probe).unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot ask what clones and snapshots cost");
                PoolAnswer::default()
            })
        })
    }

    fn reach(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        let seen = self.volume(id)?;
        if self.driver.always_open() {
            return Ok(seen.location);
        }
        let operation = Operation::Open { volume: id, access };
        let word = operation.word();
        let LocationAnswer { location } = self.ask(operation)?;
        self.check_path(word, &location.path)?;
        Ok(location.into())
    }

    /// Makes sure, where that can be told without opening it, that a volume has the size it was
    /// to get.
    pub(super) fn check_size(
        &self,
        word: &'static str,
        id: VolumeId,
        location: &Location,
        size: Bytes,
    ) -> Result<(), PoolError> {
        if !self.driver.always_open() {
            return Ok(());
        }
        let real = content::size_of(location, &self.wanted(id, Access::ReadOnly))
            .map_err(|fault| self.failed(word, fault))?;
        match real {
            Some(real) if real != size => Err(self.failed(word, DriverFault::size(real, size))),
            _ => Ok(()),
        }
    }
}

impl Seen {
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    fn facts(&self) -> Facts {
        Facts {
            path: self.location.path().to_owned(),
            size: self.size,
            used: self.used,
            format: format_of(&self.location),
        }
    }
}

impl State {
    fn id(&self) -> VolumeId {
        match self {
            State::Volume(seen) => seen.id,
            State::Draft(id) | State::Damaged(id, _) => *id,
        }
    }
}

impl From<State> for Found {
    fn from(state: State) -> Found {
        match state {
            State::Draft(id) => Found::Draft { id },
            State::Damaged(id, flaw) => Found::Damaged { id, flaw },
            State::Volume(seen) => {
                let (id, facts) = (seen.id, seen.facts());
                match seen.description {
                    Ok(description) => Found::Volume { description, facts },
                    Err(_) => Found::Undescribed { id, facts },
                }
            }
        }
    }
}

fn format_of(location: &Location) -> Format {
    match location {
        Location::RawFile(_) | Location::BlockDevice(_) => Format::Raw,
        Location::Qcow2File(_) => Format::Qcow2,
    }
}

/// An operation as an error calls it: `cannot … volume`.
fn action(operation: &Operation) -> &'static str {
    match operation {
        Operation::Snapshot { .. } => "take a snapshot of",
        Operation::Revert { .. } => "revert",
        Operation::DeleteSnapshot { .. } => "delete a snapshot of",
        Operation::OpenSnapshot { .. } => "open a snapshot of",
        Operation::Snapshots { .. } => "list the snapshots of",
        Operation::Sharing { .. } => "tell the sharing of",
        // The new volume is what cannot be made.
        Operation::Clone { .. } => "create",
        other => other.word(),
    }
}

fn power_of(operation: &Operation) -> Option<&'static str> {
    match operation {
        Operation::Clone { .. } => Some("clone"),
        Operation::Snapshots { .. }
        | Operation::Snapshot { .. }
        | Operation::Revert { .. }
        | Operation::DeleteSnapshot { .. }
        | Operation::OpenSnapshot { .. } => Some("keep snapshots"),
        Operation::Sharing { .. } => Some("tell what is shared"),
        _ => None,
    }
}

impl Pool for ExternalPool {
    fn name(&self) -> &PoolName {
        &self.name
    }

    fn driver(&self) -> &str {
        self.driver.name()
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn probe(&self) -> Result<(), PoolError> {
        let directory = self.check_marker()?;
        marker::check_writable(&directory, &self.name, &self.directory)?;
        self.ask::<PoolAnswer>(Operation::Probe).map(|_| ())
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        let UsageAnswer { size, used, free } = self.ask(Operation::Usage)?;
        for (what, bytes) in [("used", used), ("free", free)] {
            if bytes > size {
                return Err(self.failed("usage", DriverFault::Impossible { what, bytes }));
            }
        }
        Ok(Usage { size, used, free })
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        let word = Operation::List.word();
        let ListAnswer { found, strays } = self.ask(Operation::List)?;
        let mut states = BTreeMap::new();
        for found in found {
            let state = self.state(word, found)?;
            let id = state.id();
            if states.insert(id, state).is_some() {
                let what = format!("volume {id}");
                return Err(self.failed(word, DriverFault::Twice { what }));
            }
        }
        let strays = strays
            .into_iter()
            .filter(|name| !name.starts_with(RESERVED));
        let strays = strays.map(|name| Found::Stray { name });
        Ok(states
            .into_values()
            .map(Found::from)
            .chain(strays)
            .collect())
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        Ok(self.look(id)?.map(Found::from))
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        FilePool::check_size(description.id, description.size)?;
        Ok(Box::new(ExternalDraft::begin(self, description)?))
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        match self.ask(Operation::Remove { volume: id }) {
            Ok(ChangedAnswer { changed: true }) => Ok(Changed::Yes),
            Ok(ChangedAnswer { changed: false }) | Err(PoolError::NoSuchVolume { .. }) => {
                Ok(Changed::No)
            }
            Err(error) => Err(error),
        }
    }

    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError> {
        FilePool::check_size(id, to)?;
        let seen = self.volume(id)?;
        let (real, location) = (seen.size, seen.location.clone());
        let mut description = self.described(seen)?;
        if real < description.size {
            let recorded = description.size;
            return Err(self.subject(id).damaged(Flaw::WrongSize { recorded, real }));
        }
        if to < real {
            return Err(PoolError::Shrinks {
                pool: self.name.clone(),
                volume: id,
                size: real,
                to,
            });
        }
        if to == description.size {
            return Ok(Changed::No);
        }
        description.size = to;
        let operation = Operation::Grow {
            volume: id,
            size: to,
            description: self.written(&description)?,
        };
        let word = operation.word();
        let _: Done = self.ask(operation)?;
        self.check_size(word, id, &location, to)?;
        Ok(Changed::Yes)
    }

    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        let location = self.reach(id, access)?;
        content::size_of(&location, &self.wanted(id, access))
            .map_err(|fault| self.failed("open", fault))?;
        Ok(location)
    }

    fn close(&self, id: VolumeId) -> Result<(), PoolError> {
        if self.driver.always_open() {
            return Ok(());
        }
        match self.ask::<Done>(Operation::Close { volume: id }) {
            Ok(_) | Err(PoolError::NoSuchVolume { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError> {
        let location = self.reach(id, access)?;
        content::content_of(&location, &self.wanted(id, access))
            .map_err(|fault| self.failed("open", fault))
    }

    fn describe(&self, description: &Description) -> Result<Changed, PoolError> {
        let seen = self.volume(description.id)?;
        if seen.description.is_ok_and(|old| old == *description) {
            return Ok(Changed::No);
        }
        let operation = Operation::Describe {
            volume: description.id,
            description: self.written(description)?,
        };
        let _: Done = self.ask(operation)?;
        Ok(Changed::Yes)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        self.described(self.volume(id)?)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        self.volume(id).map(|seen| seen.facts())
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        let seen = match self.look(id)? {
            Some(State::Volume(seen)) => seen,
            Some(State::Draft(_)) | None => return Ok(vec![Flaw::Missing]),
            Some(State::Damaged(_, flaw)) => return Ok(vec![flaw]),
        };
        let mut flaws = Vec::new();
        if seen.size != recorded {
            let real = seen.size;
            flaws.push(Flaw::WrongSize { recorded, real });
        }
        match &seen.description {
            Ok(description) if description.size == recorded => {}
            Ok(description) => flaws.push(Flaw::DescribedSize {
                recorded,
                described: description.size,
            }),
            Err(BadDescription::None) => flaws.push(Flaw::Undescribed),
            Err(BadDescription::Unreadable(_)) => flaws.push(Flaw::BadDescription),
        }
        let told = seen.flaws.into_iter();
        flaws.extend(told.map(|reason| Flaw::Unreadable { reason }));
        Ok(flaws)
    }

    fn examine(
        &self,
        id: VolumeId,
        recorded: Bytes,
        progress: Progress<'_>,
    ) -> Result<Vec<Flaw>, PoolError> {
        let examined = examination::examine(self, id, recorded, progress);
        if examined.is_ok() {
            self.close(id)?;
        }
        examined
    }

    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError> {
        // There is nothing to tell of a draft either, and that is no volume.
        self.volume(id)?;
        if !self.driver.has(CapabilityPower::Sharing) {
            return Ok(None);
        }
        let SharingAnswer { sharing } = self.ask(Operation::Sharing { volume: id })?;
        Ok(sharing.map(Sharing::from))
    }

    fn clones(&self) -> Option<&dyn Clones> {
        let has = self.driver.has(CapabilityPower::Clone);
        has.then_some(self as &dyn Clones)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        let has = self.driver.has(CapabilityPower::Snapshot);
        has.then_some(self as &dyn Snapshots)
    }

    fn own_filesystem(&self) -> Option<&dyn OwnFilesystem> {
        None
    }
}

impl ExternalPool {
    pub(super) fn no_snapshot(&self, volume: VolumeId, snapshot: &SnapshotName) -> PoolError {
        PoolError::NoSuchSnapshot {
            pool: self.name.clone(),
            volume,
            snapshot: snapshot.clone(),
        }
    }
}
