//! Keeping chains short: each file in a chain costs memory and time where it is read through.
//!
//! Layers are merged where one lies over another that nobody else needs: what the upper says is
//! written into the lower, which shows through nothing but the upper, and then the lower takes
//! the upper's name. What it costs is the data of the upper. This is done for layers alone of
//! which the volume and its snapshots are the only users, so that no other machine has them open.
//! Where that is not enough, the volume's data is copied whole into the file that is written.
//!
//! A chain that cannot be shortened, for want of space say, stays as it is: that is no reason to
//! refuse a snapshot.

use rustix::fs::Mode;
use sistemo_model::VolumeId;

use super::chain::{self, Chain, DEEPEST};
use super::format::CLUSTER;
use super::image::Care;
use super::{Qcow2Pool, names};
use crate::contract::{LiveDisk, Progress};
use crate::{PoolError, place};

/// Layers are merged when a chain has more files.
const MERGE_PAST: usize = 16;
/// The data is copied together when a chain still has more files.
const FLATTEN_PAST: usize = 64;
/// Without being shortened a chain may come so near to what is taken for damage.
const MARGIN: usize = 8;

impl Qcow2Pool {
    fn depth(&self, id: VolumeId) -> Result<usize, PoolError> {
        let top = self.top(id)?;
        chain::names_down(&self.directory, &top)
            .map(|names| names.len())
            .map_err(|error| self.subject(id).image("open", error))
    }

    /// Shortens the chain of a volume that nobody uses, where it has grown long. What the volume
    /// and its snapshots hold does not change.
    pub(super) fn shorten(&self, id: VolumeId, progress: Progress<'_>) -> Result<(), PoolError> {
        if self.depth(id)? <= MERGE_PAST {
            return Ok(());
        }
        let mut shortened = self.merge(id, progress);
        let depth = self.depth(id)?;
        if shortened.is_ok() && depth > FLATTEN_PAST {
            shortened = self.flatten(id, progress);
        }
        match shortened {
            Err(error) if depth < DEEPEST - MARGIN => {
                tracing::warn!(%error, volume = %id, depth, "a chain of layers stays long");
                Ok(())
            }
            other => other,
        }
    }

    /// Shortens the chain under a running machine, which copies what it needs itself.
    pub(super) fn shorten_live(
        &self,
        id: VolumeId,
        disk: &mut dyn LiveDisk,
        progress: Progress<'_>,
    ) -> Result<(), PoolError> {
        let depth = self.depth(id)?;
        if depth <= FLATTEN_PAST {
            return Ok(());
        }
        self.mark_flattening(id)?;
        match disk.flatten(progress) {
            Ok(()) => {
                let _lock = self.lock(id, "flatten")?;
                // The mark has it flushed before a layer goes.
                self.remove_unused(None)?;
                self.unmark_flattening(id)
            }
            Err(error) if depth < DEEPEST - MARGIN => {
                tracing::warn!(%error, volume = %id, depth, "a chain of layers stays long");
                Ok(())
            }
            Err(source) => Err(PoolError::LiveDisk {
                action: "flatten",
                pool: self.name.clone(),
                volume: id,
                source,
            }),
        }
    }

    /// The pairs of layers to merge, the lowest first.
    fn mergeable(&self, id: VolumeId) -> Result<Vec<(String, String)>, PoolError> {
        let _lock = self.lock(id, "merge layers of")?;
        let top = self.top(id)?;
        let chain = chain::names_down(&self.directory, &top)
            .map_err(|error| self.subject(id).image("open", error))?;
        let layers = self.layers()?;
        if !layers.is_complete() {
            return Ok(Vec::new());
        }
        let is_own = |name: &str| chain.iter().any(|file| file == name) || is_snapshot_of(id, name);
        let own = chain
            .iter()
            .take_while(|name| layers.all_over(name).into_iter().all(is_own));
        let own: Vec<&String> = own.skip(1).collect();
        let pairs = own.windows(2).rev().filter_map(|pair| match pair {
            [upper, lower] if layers.users(lower).count() == 1 => {
                Some(((*upper).clone(), (*lower).clone()))
            }
            _ => None,
        });
        Ok(pairs.collect())
    }

    fn merge(&self, id: VolumeId, progress: Progress<'_>) -> Result<(), PoolError> {
        let pairs = self.mergeable(id)?;
        let failed = |error| self.subject(id).image("merge layers of", error);
        let mut total = 0;
        for (upper, _) in &pairs {
            let summary = chain::look(&self.directory, upper).map_err(failed)?;
            total += summary.used;
        }
        let mut done = 0;
        for (upper, lower) in &pairs {
            let mut step = |bytes| {
                done += bytes;
                progress(done.min(total), total);
            };
            self.merge_pair(upper, lower, &mut step).map_err(failed)?;
            // Whoever looks at all layers must not see it under neither name.
            let _lock = self.lock(id, "merge layers of")?;
            self.directory
                .rename_unflushed(lower, upper)
                .map_err(|source| self.subject(id).failed("merge layers of", source))?;
            self.flush(id, "merge layers of")?;
        }
        Ok(())
    }

    /// Makes a layer hold what the one over it does. A crash leaves both as good as they were.
    fn merge_pair(
        &self,
        upper: &str,
        lower: &str,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), super::ImageError> {
        let upper = chain::open_image(&self.directory, upper, None)?;
        let frozen = chain::open_image(&self.directory, lower, None)?;
        frozen.set_mode(Mode::RUSR | Mode::WUSR)?;
        let mut image = chain::open_image(&self.directory, lower, Some(Care::PowerCut))?;
        let over_something = image.header().backing.is_some();
        chain::push_down(&upper, &mut image, over_something, progress)?;
        image.set_mode(Mode::RUSR)
    }

    /// Copies all that shows through a volume's data into it, and cuts it off.
    fn flatten(&self, id: VolumeId, progress: Progress<'_>) -> Result<(), PoolError> {
        let top = self.top(id)?;
        self.thaw(id, &top)?;
        let failed = |error| self.subject(id).image("flatten", error);
        let mut chain = Chain::open(&self.directory, &top, Some(Care::PowerCut)).map_err(failed)?;
        self.check_room(id, &chain)?;
        chain::pull(&mut chain.images, progress).map_err(failed)?;
        let Some(image) = chain.images.first_mut() else {
            return Ok(());
        };
        // All that was pulled, before others have to wait.
        image.flush().map_err(failed)?;
        let _lock = self.lock(id, "flatten")?;
        self.mark_flattening(id)?;
        image.cut_off().map_err(failed)?;
        drop(chain);
        self.unmark_flattening(id)?;
        self.remove_unused(None)?;
        Ok(())
    }

    /// Keeps a copy that would not fit from filling the pool.
    fn check_room(&self, id: VolumeId, chain: &Chain) -> Result<(), PoolError> {
        let Some((top, beneath)) = chain.images.split_first() else {
            return Ok(());
        };
        let missing = chain::missing(top, beneath)
            .map_err(|error| self.subject(id).image("flatten", error))?;
        let needed = missing.len() as u64 * CLUSTER;
        let free = place::usage(self.directory.path(), &self.name)?.free;
        // As much again has to be left for others, and for tables.
        if needed.saturating_mul(2) <= free {
            return Ok(());
        }
        let source = sistemo_host::directory::FileError::new(
            "copy into",
            top.path(),
            rustix::io::Errno::NOSPC,
        );
        Err(self.subject(id).failed("flatten", source))
    }
}

fn is_snapshot_of(id: VolumeId, name: &str) -> bool {
    matches!(names::parse(name), Some((of, names::Kind::Snapshot(_))) if of == id)
}
