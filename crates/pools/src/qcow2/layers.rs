//! Who lies over what, and removing what nobody lies over any more.
//!
//! Only here are layers removed, and only under the pool's lock, which everybody holds who makes
//! or removes a file that lies over another. What cannot be read might lie over anything: while
//! there is such a file, no layer is removed.

use std::collections::{BTreeMap, BTreeSet};

use sistemo_host::directory::{FileError, Open};
use sistemo_host::lock::{Lock, LockError, PATIENCE};
use sistemo_model::VolumeId;

use super::names::{self, Kind};
use super::{Qcow2Pool, chain};
use crate::PoolError;

/// The file whose lock it is. It begins as the marker does, and so is no stray.
const LOCK: &str = ".sistemo-pool.lock";

/// What the names of files begin with that say whose data is cut off from its layers. They too
/// begin as the marker does.
const FLATTENING: &str = ".sistemo-pool.flattening.";

fn flattening(id: VolumeId) -> String {
    format!("{FLATTENING}{id}")
}

/// All published data files and snapshots of a pool.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// What each lies over.
    beneath: BTreeMap<String, Option<String>>,
    /// Those that cannot be read.
    unreadable: BTreeSet<String>,
}

impl Layers {
    /// The files that lie over one directly.
    pub(super) fn users<'a>(&'a self, layer: &'a str) -> impl Iterator<Item = &'a str> {
        let users = self.beneath.iter();
        users
            .filter(move |(_, beneath)| beneath.as_deref() == Some(layer))
            .map(|(name, _)| name.as_str())
    }

    fn is_used(&self, layer: &str) -> bool {
        self.users(layer).next().is_some()
    }

    /// All files that need one, directly or not, itself included.
    pub(super) fn all_over(&self, layer: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut todo: Vec<&str> = self
            .beneath
            .get_key_value(layer)
            .map(|(n, _)| &**n)
            .into_iter()
            .collect();
        while let Some(name) = todo.pop() {
            if found.insert(name) {
                todo.extend(self.beneath.iter().filter_map(|(user, beneath)| {
                    (beneath.as_deref() == Some(name)).then_some(user.as_str())
                }));
            }
        }
        found
    }

    pub(super) fn is_complete(&self) -> bool {
        self.unreadable.is_empty()
    }

    /// All that is used, for looking up many.
    pub(super) fn used(&self) -> BTreeSet<&str> {
        self.beneath
            .values()
            .flatten()
            .map(String::as_str)
            .collect()
    }
}

impl Qcow2Pool {
    /// Waits for whoever changes which file lies over which.
    pub(super) fn lock(&self, volume: VolumeId, action: &'static str) -> Result<Lock, PoolError> {
        let path = self.path_of(LOCK);
        Lock::acquire(&path, action, PATIENCE).map_err(|error| {
            let source = match error {
                LockError::File(source) => source,
                held @ LockError::Held { .. } => {
                    let error = std::io::Error::new(std::io::ErrorKind::WouldBlock, held);
                    FileError::new("lock", path, error)
                }
            };
            self.subject(volume).failed(action, source)
        })
    }

    /// Makes the lock's file, so that removing something from a full pool needs no room for it.
    pub(super) fn prepare_lock(&self) {
        if let Err(error) = Lock::try_acquire(&self.path_of(LOCK), "open") {
            tracing::debug!(%error, "the lock of a pool is made when it is needed");
        }
    }

    /// Reads the headers of all files.
    pub(super) fn layers(&self) -> Result<Layers, PoolError> {
        let mut layers = Layers::default();
        let files = self.directory.files();
        for name in files.map_err(|error| self.unavailable(error))? {
            let Some((_, Kind::Data(_) | Kind::Snapshot(_))) = names::parse(&name) else {
                continue;
            };
            let beneath = chain::look(&self.directory, &name)
                .and_then(|summary| Ok(chain::layer_under(&name, &summary)?.map(str::to_owned)));
            match beneath {
                Ok(beneath) => {
                    layers.beneath.insert(name, beneath);
                }
                // Removed meanwhile.
                Err(error) if error.is_missing() => {}
                Err(_) => {
                    layers.unreadable.insert(name);
                }
            }
        }
        Ok(layers)
    }

    /// Removes the layers that nobody needs: those of volumes that are removed, those below what
    /// a volume is now, and all data of `dying`. Says whether others use layers of `dying`.
    ///
    /// The caller holds the lock and has flushed the directory since something ceased to use
    /// them. A crash leaves some of them, for the next time.
    pub(super) fn remove_unused(&self, dying: Option<VolumeId>) -> Result<bool, PoolError> {
        let mut layers = self.layers()?;
        if let Some(id) = dying {
            self.remove_newest(id, &mut layers)?;
        }
        if !layers.is_complete() {
            let files = &layers.unreadable;
            tracing::warn!(pool = %self.name, ?files, "no layer is removed while files cannot be read");
        }
        let mut tops: BTreeMap<VolumeId, u64> = BTreeMap::new();
        for (id, generation) in layers
            .beneath
            .keys()
            .filter_map(|name| names::parse_data(name))
        {
            let top = tops.entry(id).or_default();
            *top = generation.max(*top);
        }
        let unused: Vec<String> = {
            let used = layers.used();
            let data = layers
                .beneath
                .keys()
                .filter(|name| names::parse_data(name).is_some());
            data.filter(|name| !used.contains(name.as_str()))
                .cloned()
                .collect()
        };
        let mut todo = if layers.is_complete() {
            unused
        } else {
            Vec::new()
        };
        if !todo.is_empty() {
            self.settle_flattening()?;
        }
        while let Some(name) = todo.pop() {
            let Some((id, generation)) = names::parse_data(&name) else {
                continue;
            };
            let below_top = tops.get(&id).is_some_and(|top| generation < *top);
            if !(dying == Some(id) || self.is_removable(id, below_top)?) {
                continue;
            }
            self.unlink(id, &name)?;
            let beneath = layers.beneath.remove(&name).flatten();
            if let Some(beneath) = beneath
                && layers.beneath.contains_key(&beneath)
                && !layers.is_used(&beneath)
            {
                todo.push(beneath);
            }
            self.forget_removed(id, &layers)?;
        }
        let mut left = layers.beneath.keys().chain(&layers.unreadable);
        Ok(left.any(|name| names::parse_data(name).is_some_and(|(id, _)| dying == Some(id))))
    }

    /// Removes what a volume was last, also where it cannot be read: the newest of its files,
    /// while it is still writable, was never a layer.
    fn remove_newest(&self, id: VolumeId, layers: &mut Layers) -> Result<(), PoolError> {
        let all = layers.beneath.keys().chain(&layers.unreadable);
        let own = all.filter_map(|name| match names::parse_data(name) {
            Some((of, generation)) if of == id => Some((generation, name)),
            _ => None,
        });
        let Some(name) = own.max().map(|(_, name)| name.clone()) else {
            return Ok(());
        };
        let writable = self.mode(id, &name)?.is_some_and(|mode| mode & 0o200 != 0);
        if writable && !layers.is_used(&name) {
            self.unlink(id, &name)?;
            layers.beneath.remove(&name);
            layers.unreadable.remove(&name);
        }
        Ok(())
    }

    /// Records that a volume's data may be cut off from what it lies over before that is on disk:
    /// whoever removes layers from then on flushes it first. Not flushed itself, for a power cut
    /// that loses it loses the cut too.
    pub(super) fn mark_flattening(&self, id: VolumeId) -> Result<(), PoolError> {
        let file = self.directory.file(&flattening(id), Open::CreateOrOpen);
        file.map(drop)
            .map_err(|source| self.subject(id).failed("flatten", source))
    }

    /// Takes back [`Qcow2Pool::mark_flattening`], where the volume's data is on disk as it is.
    pub(super) fn unmark_flattening(&self, id: VolumeId) -> Result<(), PoolError> {
        self.unlink(id, &flattening(id))
    }

    /// Brings to disk that data was cut off from its layers, by whoever was killed meanwhile.
    fn settle_flattening(&self) -> Result<(), PoolError> {
        let files = self.directory.files();
        for name in files.map_err(|error| self.unavailable(error))? {
            let id = name.strip_prefix(FLATTENING).map(str::parse);
            let Some(Ok(id)) = id else { continue };
            match self.top(id) {
                Ok(top) => {
                    let failed = |source| self.subject(id).failed("flush", source);
                    let file = self.directory.file(&top, Open::Read).map_err(failed)?;
                    self.directory.flush_file(&top, &file).map_err(failed)?;
                }
                Err(PoolError::NoSuchVolume { .. }) => self.unlink(id, &name)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether data that nobody lies over may go: that of a removed volume, or what is not the
    /// newest of one that is there. Anything else may be a volume that is damaged, or one that is
    /// just being made.
    fn is_removable(&self, id: VolumeId, below_top: bool) -> Result<bool, PoolError> {
        if self.is_there(id, &names::new_description(id))? {
            return Ok(false);
        }
        if self.is_there(id, &names::description(id))? {
            return Ok(below_top);
        }
        self.is_there(id, &names::layers(id))
    }

    /// Forgets a removed volume when its last layer is gone.
    fn forget_removed(&self, id: VolumeId, layers: &Layers) -> Result<(), PoolError> {
        let all = layers.beneath.keys().chain(&layers.unreadable);
        let has_more = all
            .filter_map(|name| names::parse(name))
            .any(|(of, _)| of == id);
        if !has_more {
            self.unlink(id, &names::layers(id))?;
        }
        Ok(())
    }
}
