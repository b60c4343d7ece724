//! Locks on objects, for the time an operation touches them.
//!
//! One file each in `<data-dir>/locks/`, never unlinked: a file that is unlinked while another
//! process waits for it would be two locks. A lock is free as soon as its holder, and every
//! program that inherited it, is gone; none is ever stale.
//!
//! The order is: machines before volumes, and by ID among each. A [`LockSet`] keeps it. What was
//! read from the catalogue before a lock was taken may have changed while waiting for it and
//! must be read again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sistemo_host::directory::Directory;
use sistemo_host::lock::{Lock, LockError, PATIENCE};
use sistemo_model::{ImageName, MachineId, PoolName, VolumeId};

use crate::error::{CatalogError, Result};
use crate::intents::Intent;

/// What can be locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lockable {
    /// A machine's record, while an operation works on it.
    Machine(MachineId),
    /// A volume's record and content, while an operation works on it.
    Volume(VolumeId),
    /// A machine's life. Whoever starts it takes it and lets its VMM inherit it: from then on
    /// holding it is being alive.
    Run(MachineId),
    /// A machine's monitor, while there is one.
    Monitor(MachineId),
    /// An image's name, while an image is built, imported or deleted under it.
    Image(ImageName),
    /// The copies of images in a pool, while one is made there, so that it is made once.
    ImageCopies(PoolName),
    /// The product's SSH key, while it is made.
    SshKey,
    /// Which pools there are, while that is changed, or a pool is used for the first time.
    Pools,
}

impl Lockable {
    fn file(&self) -> String {
        match self {
            Lockable::Machine(id) => format!("machine-{id}.lock"),
            Lockable::Volume(id) => format!("volume-{id}.lock"),
            Lockable::Run(id) => format!("machine-{id}.run"),
            Lockable::Monitor(id) => format!("machine-{id}.monitor"),
            Lockable::Image(name) => format!("image-{name}.lock"),
            Lockable::ImageCopies(pool) => format!("image-copies-{pool}.lock"),
            Lockable::SshKey => "ssh-key.lock".to_owned(),
            Lockable::Pools => "pools.lock".to_owned(),
        }
    }
}

impl fmt::Display for Lockable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lockable::Machine(id) => write!(f, "machine {id}"),
            Lockable::Volume(id) => write!(f, "volume {id}"),
            Lockable::Run(id) => write!(f, "the life of machine {id}"),
            Lockable::Monitor(id) => write!(f, "the monitor of machine {id}"),
            Lockable::Image(name) => write!(f, "image {name}"),
            Lockable::ImageCopies(pool) => write!(f, "the images in pool {pool}"),
            Lockable::SshKey => f.write_str("the SSH key"),
            Lockable::Pools => f.write_str("the list of pools"),
        }
    }
}

/// The locks of one data directory.
#[derive(Clone, Debug)]
pub struct Locks {
    directory: PathBuf,
    patience: Duration,
}

impl Locks {
    /// Uses a directory for locks, usually `<data-dir>/locks`; makes it, with mode 0700, where it
    /// is missing.
    ///
    /// # Errors
    /// [`CatalogError::File`] where its parent is missing or may not be written.
    pub fn open(directory: &Path) -> Result<Locks> {
        let _ = Directory::create(directory)?;
        Ok(Locks {
            directory: directory.to_owned(),
            patience: PATIENCE,
        })
    }

    /// The same locks, waited for no longer than this instead of 10 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Locks {
        Locks { patience, ..self }
    }

    /// The file of a lock, for a process that inherits the lock.
    #[must_use]
    pub fn path(&self, object: &Lockable) -> PathBuf {
        self.directory.join(object.file())
    }

    /// Takes a lock, waiting for whoever holds it. `purpose` is what others who wait are told.
    ///
    /// # Errors
    /// [`CatalogError::Locked`] with the holder's purpose where it is still held after 10 s.
    pub fn acquire(&self, object: &Lockable, purpose: &str) -> Result<Lock> {
        self.acquire_within(object, purpose, self.patience)
    }

    /// Takes a lock where it is free; `None` where it is held.
    ///
    /// # Errors
    /// [`CatalogError::File`] where its file cannot be used.
    pub fn try_acquire(&self, object: &Lockable, purpose: &str) -> Result<Option<Lock>> {
        Lock::try_acquire(&self.path(object), purpose).map_err(|error| about(object, error))
    }

    /// Whether somebody holds a lock at this instant; for [`Lockable::Run`]: whether the machine
    /// is alive.
    ///
    /// # Errors
    /// [`CatalogError::File`] where its file cannot be used.
    pub fn is_held(&self, object: &Lockable) -> Result<bool> {
        Lock::is_held(&self.path(object)).map_err(|error| about(object, error))
    }

    /// Takes a machine's lock. Where volumes follow, [`Locks::set`] keeps the order.
    ///
    /// # Errors
    /// As [`Locks::acquire`].
    pub fn machine(&self, id: MachineId, purpose: &str) -> Result<Lock> {
        self.acquire(&Lockable::Machine(id), purpose)
    }

    /// Takes a machine's lock where it is free; `None` where it is held.
    ///
    /// # Errors
    /// As [`Locks::try_acquire`].
    pub fn try_machine(&self, id: MachineId, purpose: &str) -> Result<Option<Lock>> {
        self.try_acquire(&Lockable::Machine(id), purpose)
    }

    /// Takes a volume's lock. For several, [`Locks::set`] keeps the order.
    ///
    /// # Errors
    /// As [`Locks::acquire`].
    pub fn volume(&self, id: VolumeId, purpose: &str) -> Result<Lock> {
        self.acquire(&Lockable::Volume(id), purpose)
    }

    /// Takes a volume's lock where it is free; `None` where it is held.
    ///
    /// # Errors
    /// As [`Locks::try_acquire`].
    pub fn try_volume(&self, id: VolumeId, purpose: &str) -> Result<Option<Lock>> {
        self.try_acquire(&Lockable::Volume(id), purpose)
    }

    /// Starts a set of locks that are held for one purpose.
    pub fn set(&self, purpose: &str) -> LockSet {
        LockSet {
            locks: self.clone(),
            purpose: purpose.to_owned(),
            machines: BTreeMap::new(),
            volumes: BTreeMap::new(),
        }
    }

    /// Takes all the locks that the owner of an intent holds, where all are free; `None`, and no
    /// lock, where the owner or a program it started still lives, or somebody else is busy with
    /// one of the objects. The intent may be gone by now: ask for it again.
    ///
    /// # Errors
    /// [`CatalogError::File`] where a lock's file cannot be used.
    pub fn try_intent(&self, intent: &Intent, purpose: &str) -> Result<Option<LockSet>> {
        let mut set = self.set(purpose);
        if let Some(id) = intent.machine() {
            let Some(lock) = self.try_machine(id, purpose)? else {
                return Ok(None);
            };
            set.machines.insert(id, lock);
        }
        for id in intent.volumes() {
            let Some(lock) = self.try_volume(id, purpose)? else {
                return Ok(None);
            };
            set.volumes.insert(id, lock);
        }
        Ok(Some(set))
    }

    fn acquire_within(&self, object: &Lockable, purpose: &str, patience: Duration) -> Result<Lock> {
        Lock::acquire(&self.path(object), purpose, patience).map_err(|error| about(object, error))
    }
}

/// Locks that are held together and freed together, when the set is dropped.
///
/// Two sets never wait for each other: a lock that comes out of order (a machine after a volume,
/// a lower ID after a higher one) is taken only where it is free at once.
#[derive(Debug)]
#[must_use]
pub struct LockSet {
    locks: Locks,
    purpose: String,
    machines: BTreeMap<MachineId, Lock>,
    volumes: BTreeMap<VolumeId, Lock>,
}

impl LockSet {
    /// Adds the locks of machines, lowest ID first; those it has already are left as they are.
    ///
    /// # Errors
    /// [`CatalogError::Locked`]; the set then has what it had before.
    pub fn add_machines(&mut self, ids: impl IntoIterator<Item = MachineId>) -> Result<()> {
        let last = self.machines.keys().next_back().copied();
        let mut added = BTreeMap::new();
        for id in missing(&self.machines, ids) {
            let in_order = self.volumes.is_empty() && last < Some(id);
            added.insert(id, self.take(&Lockable::Machine(id), in_order)?);
        }
        self.machines.append(&mut added);
        Ok(())
    }

    /// Adds a machine's lock where it is free; returns whether the set has it now.
    ///
    /// # Errors
    /// As [`Locks::try_acquire`].
    pub fn add_machine_if_free(&mut self, id: MachineId) -> Result<bool> {
        if !self.machines.contains_key(&id) {
            let Some(lock) = self.locks.try_machine(id, &self.purpose)? else {
                return Ok(false);
            };
            self.machines.insert(id, lock);
        }
        Ok(true)
    }

    /// Adds the locks of volumes, lowest ID first; those it has already are left as they are.
    ///
    /// # Errors
    /// [`CatalogError::Locked`]; the set then has what it had before.
    pub fn add_volumes(&mut self, ids: impl IntoIterator<Item = VolumeId>) -> Result<()> {
        let last = self.volumes.keys().next_back().copied();
        let mut added = BTreeMap::new();
        for id in missing(&self.volumes, ids) {
            added.insert(id, self.take(&Lockable::Volume(id), last < Some(id))?);
        }
        self.volumes.append(&mut added);
        Ok(())
    }

    /// Lets go of a machine's lock before the set is dropped; the others stay.
    pub fn release_machine(&mut self, id: MachineId) {
        self.machines.remove(&id);
    }

    /// A machine's lock, where the set has it, for a program to inherit.
    #[must_use]
    pub fn machine(&self, id: MachineId) -> Option<&Lock> {
        self.machines.get(&id)
    }

    /// A volume's lock, where the set has it, for a program to inherit.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Lock> {
        self.volumes.get(&id)
    }

    /// Whether the set has all the locks that the owner of an intent holds.
    #[must_use]
    pub fn has_all_of(&self, intent: &Intent) -> bool {
        let machine = intent.machine();
        machine.is_none_or(|id| self.machines.contains_key(&id))
            && intent
                .volumes()
                .iter()
                .all(|id| self.volumes.contains_key(id))
    }

    fn take(&self, object: &Lockable, in_order: bool) -> Result<Lock> {
        let patience = if in_order {
            self.locks.patience
        } else {
            Duration::ZERO
        };
        self.locks.acquire_within(object, &self.purpose, patience)
    }
}

fn missing<I: Ord>(held: &BTreeMap<I, Lock>, wanted: impl IntoIterator<Item = I>) -> BTreeSet<I> {
    wanted
        .into_iter()
        .filter(|id| !held.contains_key(id))
        .collect()
}

fn about(object: &Lockable, error: LockError) -> CatalogError {
    match error {
        LockError::Held { holder, .. } => CatalogError::Locked {
            object: object.clone(),
            holder,
        },
        LockError::File(error) => CatalogError::File(error),
    }
}
