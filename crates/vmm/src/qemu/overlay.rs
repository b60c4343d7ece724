//! Changing the files of a disk beneath a running guest.
//!
//! Nodes that we added belong to QEMU's user, which we are: they stay, with their files open and
//! locked, until we delete them. Those that QEMU opened by itself go with the last that needs
//! them.
//!
//! Flattening is a block job in three steps, for QEMU's own last step is not safe: it takes the
//! backing file's name out of the top file's header while the tables that say where the copied
//! data is may still be in its memory. Killed then, the file would read as zeros. So the job is
//! held before that step (`auto-finalize` off), and the top file flushed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use sistemo_host::directory::{self, FileError};
use sistemo_model::{Access, Bytes};

use super::control::QemuControl;
use super::jobs;
use super::nodes::{self, Aio, Caching, Opening};
use crate::VmmError;
use crate::contract::DiskLocation;

/// How often a flattening is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// A disk of the running machine.
pub(super) struct LiveDisk {
    position: u8,
    /// The node that the guest's device is upon.
    pub(super) top: BlockNode,
    /// All nodes of the machine that have names of ours.
    nodes: Vec<BlockNode>,
}

/// `BlockDeviceInfo` of QEMU's qapi/block-core.json.
#[derive(Clone, Deserialize)]
pub(super) struct BlockNode {
    #[serde(rename = "node-name", default)]
    pub(super) name: String,
    #[serde(rename = "drv")]
    driver: String,
    file: String,
    #[serde(rename = "ro")]
    read_only: bool,
    cache: CacheInfo,
    pub(super) image: ImageInfo,
}

#[derive(Clone, Deserialize)]
struct CacheInfo {
    direct: bool,
}

#[derive(Clone, Deserialize)]
pub(super) struct ImageInfo {
    #[serde(rename = "virtual-size")]
    pub(super) size: Bytes,
    #[serde(rename = "full-backing-filename")]
    backing: Option<String>,
}

/// `XDbgBlockGraph` of QEMU's qapi/block-core.json.
#[derive(Deserialize)]
struct Graph {
    nodes: Vec<GraphNode>,
    edges: Vec<GraphEdge>,
}

#[derive(Deserialize)]
struct GraphNode {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct GraphEdge {
    parent: u64,
    child: u64,
    name: String,
}

impl BlockNode {
    /// How it is opened. Which aio it has QEMU does not tell.
    pub(super) fn opening(&self, aio: Aio) -> Opening {
        let caching = if self.cache.direct {
            Caching::Direct
        } else {
            Caching::Cached
        };
        let access = if self.read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        Opening {
            aio,
            caching,
            access,
        }
    }
}

impl LiveDisk {
    fn node(&self, name: &str) -> Option<&BlockNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The path of a disk node's file, as QEMU was given it.
    fn file_of(&self, name: &str) -> Option<&Path> {
        let file = self.node(&nodes::file_node_name(name))?;
        Some(Path::new(&file.file))
    }

    /// The path of the file that the guest writes to, as QEMU was given it.
    pub(super) fn top_file(&self) -> Option<&Path> {
        self.file_of(&self.top.name)
    }

    /// The nodes of this disk that have a file as their own, and their numbers.
    fn layers(&self) -> impl Iterator<Item = (&str, u32)> {
        let own = self.nodes.iter().map(|node| node.name.as_str());
        own.filter(|name| nodes::position_of(name) == Some(self.position))
            .filter_map(|name| Some((name, nodes::layer_number(name)?)))
    }

    fn require_qcow2(&self) -> Result<(), VmmError> {
        if self.top.driver == "qcow2" {
            return Ok(());
        }
        let position = self.position;
        Err(VmmError::NotQcow2 { position })
    }

    /// Refuses a disk before which a job of QEMU has put a node of its own.
    pub(super) fn require_untouched(&self) -> Result<(), VmmError> {
        let position = self.position;
        if self.top.name == nodes::flattening_name(position) {
            return Err(VmmError::Flattening { position });
        }
        if self.top.name == nodes::copy_name(position) {
            return Err(VmmError::Copying { position });
        }
        Ok(())
    }
}

impl QemuControl {
    /// The disk in a place. Found by its device, which keeps its name while nodes come and go.
    pub(super) fn disk(&mut self, position: u8) -> Result<LiveDisk, VmmError> {
        let device = format!("/machine/peripheral/{}", nodes::device_name(position));
        let drive = json!({ "path": device, "property": "drive" });
        let top: String = match self.ask("qom-get", Some(&drive)) {
            Err(VmmError::Refused { .. }) => return Err(VmmError::NoDisk { position }),
            other => other?,
        };
        let named = self.named_nodes()?;
        let found = named.iter().find(|node| node.name == top).cloned();
        Ok(LiveDisk {
            position,
            top: found.ok_or(VmmError::NoDisk { position })?,
            nodes: named,
        })
    }

    /// All nodes that have names of ours.
    pub(super) fn named_nodes(&mut self) -> Result<Vec<BlockNode>, VmmError> {
        let flat = json!({ "flat": true });
        let mut named: Vec<BlockNode> = self.ask("query-named-block-nodes", Some(&flat))?;
        named.retain(|node| nodes::position_of(&node.name).is_some());
        Ok(named)
    }

    pub(super) fn switch(&mut self, position: u8, overlay: &Path) -> Result<(), VmmError> {
        let disk = self.disk(position)?;
        disk.require_untouched()?;
        disk.require_qcow2()?;
        let own = nodes::layer_number(&disk.top.name).unwrap_or(0);
        for (name, number) in disk.layers() {
            // Added by a client that was killed before it switched; its file stays locked else.
            if number > own {
                self.delete_node(name)?;
            }
        }
        let name = nodes::layer_name(position, own + 1);
        match self.add_overlay(&name, overlay, disk.top.opening(Aio::IoUring)) {
            Err(VmmError::Refused { message, .. }) if message.contains("io_uring") => {
                self.add_overlay(&name, overlay, disk.top.opening(Aio::Threads))?;
            }
            added => added?,
        }
        let switched = self.check_overlay(&disk, &name, overlay).and_then(|()| {
            let ends = json!({ "node": disk.top.name, "overlay": name });
            self.order("blockdev-snapshot", &ends)
        });
        if switched.is_err()
            && let Err(error) = self.delete_node(&name)
        {
            tracing::warn!(%error, overlay = %overlay.display(), "QEMU keeps a refused overlay open");
        }
        switched
    }

    fn add_overlay(
        &mut self,
        name: &str,
        overlay: &Path,
        opening: Opening,
    ) -> Result<(), VmmError> {
        let location = DiskLocation::Qcow2File(overlay.to_owned());
        let mut node = opening.node(name, &location)?;
        // What it lies over is open already.
        node["backing"] = serde_json::Value::Null;
        self.order("blockdev-add", &node)
    }

    /// QEMU looks at neither: it would change the disk's size beneath the guest, and start the
    /// next time with whatever file the overlay names.
    fn check_overlay(
        &mut self,
        before: &LiveDisk,
        name: &str,
        overlay: &Path,
    ) -> Result<(), VmmError> {
        let position = before.position;
        let refuse = |reason| VmmError::Overlay {
            position,
            overlay: overlay.to_owned(),
            reason,
        };
        let now = self.disk(position)?;
        let node = now.node(name).ok_or(VmmError::NoDisk { position })?;
        let (size, wanted) = (node.image.size, before.top.image.size);
        if size != wanted {
            let (size, wanted) = (size.get(), wanted.get());
            return Err(refuse(format!("it has {size} bytes instead of {wanted}")));
        }
        let below = now.top_file().ok_or(VmmError::NoDisk { position })?;
        match &node.image.backing {
            Some(backing) if is_same_file(Path::new(backing), below) => Ok(()),
            Some(backing) => {
                let below = below.display();
                Err(refuse(format!("it lies over {backing} instead of {below}")))
            }
            None => Err(refuse("it has no backing file".to_owned())),
        }
    }

    pub(super) fn delete_node(&mut self, name: &str) -> Result<(), VmmError> {
        self.order("blockdev-del", &json!({ "node-name": name }))
    }

    pub(super) fn flatten(
        &mut self,
        position: u8,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), VmmError> {
        let id = nodes::flattening_name(position);
        let disk = self.disk(position)?;
        // One whose client was killed goes on, up to where it waits.
        if self.job(&id)?.is_none() {
            disk.require_untouched()?;
            disk.require_qcow2()?;
            if disk.top.image.backing.is_none() {
                return self.let_go_of_lower(position);
            }
            let stream = json!({
                "job-id": id,
                "device": disk.top.name,
                "filter-node-name": id,
                "auto-finalize": false,
            });
            let _ = self.job_outcome("block-stream", &id);
            self.order("block-stream", &stream)?;
        }
        self.follow_flattening(position, &id, progress)?;
        self.let_go_of_lower(position)
    }

    fn follow_flattening(
        &mut self,
        position: u8,
        id: &str,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), VmmError> {
        let named = json!({ "id": id });
        let mut refused = None;
        while let Some(job) = self.job(id)? {
            progress(job.done, job.total);
            match job.status.as_str() {
                "pending" if refused.is_none() => match self.flush_top(position) {
                    Ok(()) => self.order("job-finalize", &named)?,
                    Err(error) => {
                        self.order("job-cancel", &named)?;
                        refused = Some(error);
                    }
                },
                _ => thread::sleep(PAUSE),
            }
        }
        // Once it has ended QEMU forgets it. A job that is kept to be asked how it ended also
        // keeps its node, which then has nothing beneath: QEMU 7.2 crashes when asked for its
        // nodes then.
        let outcome = refused.map_or_else(|| self.job_outcome("block-stream", id), Err);
        let still_above = self.disk(position)?.top.image.backing.is_some();
        outcome?;
        if still_above {
            return Err(jobs::refused(
                "block-stream",
                "the job ended early".to_owned(),
            ));
        }
        // The header, which names no backing file now. QEMU keeps it in no cache of its own.
        self.flush_file(position)
    }

    /// Flushes the top file with all that QEMU keeps of it, while a job holds its backing file.
    ///
    /// QEMU's protocol has no command that only flushes. Opening a node anew with the options
    /// that it has does, first of all, and tells where that fails (`bdrv_reopen_prepare` in
    /// QEMU's block.c).
    fn flush_top(&mut self, position: u8) -> Result<(), VmmError> {
        let disk = self.disk(position)?;
        let graph: Graph = self.ask("x-debug-query-block-graph", None)?;
        let top = graph.child(&disk.top.name, "file");
        let backing = top.and_then(|top| graph.child(top, "backing"));
        let opening = top
            .and_then(|top| disk.node(top))
            .map(|node| node.opening(Aio::Threads));
        let (Some(top), Some(backing), Some(opening)) = (top, backing, opening) else {
            return Err(VmmError::NotQcow2 { position });
        };
        let node = opening.qcow2_over(top, backing);
        self.order("blockdev-reopen", &json!({ "options": [node] }))
    }

    pub(super) fn flush_file(&mut self, position: u8) -> Result<(), VmmError> {
        let disk = self.disk(position)?;
        let path = disk
            .file_of(&disk.top.name)
            .ok_or(VmmError::NoDisk { position })?;
        let file = File::open(path).map_err(|error| FileError::new("open disk", path, error))?;
        Ok(directory::flush(path, &file)?)
    }

    /// Deletes the nodes that were once the disk and are beneath it no more.
    fn let_go_of_lower(&mut self, position: u8) -> Result<(), VmmError> {
        let disk = self.disk(position)?;
        let mut lower: Vec<_> = disk
            .layers()
            .filter(|(name, _)| *name != disk.top.name)
            .collect();
        // From the top down: one that another lies over cannot be deleted.
        lower.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
        for (name, _) in lower {
            self.delete_node(name)?;
        }
        Ok(())
    }
}

impl Graph {
    /// The node that a node has as its `file` or `backing`.
    fn child(&self, name: &str, role: &str) -> Option<&str> {
        let node = self.nodes.iter().find(|node| node.name == name)?;
        let edge = self
            .edges
            .iter()
            .find(|edge| edge.parent == node.id && edge.name == role)?;
        let below = self.nodes.iter().find(|node| node.id == edge.child)?;
        Some(&below.name)
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
    matches!((of(one), of(other)), (Ok(one), Ok(other)) if one == other)
}
