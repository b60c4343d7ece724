//! Copying disks of a running guest as they were at one instant: QEMU's backup jobs.
//!
//! A job's target is a raw file, in which what is zero on the disk is to stay a hole. QEMU's
//! backup writes zeros without leave to unmap them (`block_copy_do_copy` in its
//! block/block-copy.c), and its raw files then reserve the space. So what the job writes to is a
//! qcow2 node whose data is in the raw file (`data-file`), each cluster at its own place as in
//! the disk: zeros become entries of the qcow2 file's tables, which nobody needs afterwards. That
//! file loses its name as soon as it is open.
//!
//! | node | what it is |
//! |---|---|
//! | `disk0-copy` | the job's own, before the disk: it copies what the guest is about to overwrite |
//! | `disk0-copy-target` | the qcow2 node |
//! | `disk0-copy-data` | the raw file |
//! | `disk0-copy-map` | the qcow2 file |
//!
//! A job that has ended is kept (`auto-dismiss` off) to be asked how it ended: whoever looks may
//! not be connected at that instant.

use serde_json::{Value, json};
use sistemo_host::directory::{Directory, Open};
use sistemo_model::{Access, Bytes};

use super::control::QemuControl;
use super::nodes::{self, Caching, absolute};
use crate::VmmError;
use crate::contract::{CopyProgress, DiskCopy, DiskLocation};

/// The smallest piece that is copied; QEMU copies in no smaller ones.
const CLUSTER: u64 = 64 << 10;

impl QemuControl {
    pub(super) fn prepare(&mut self, copies: &[DiskCopy]) -> Result<(), VmmError> {
        let positions: Vec<u8> = copies.iter().map(|copy| copy.position).collect();
        self.end(&positions)?;
        let prepared = copies.iter().try_for_each(|copy| self.prepare_one(copy));
        if prepared.is_err()
            && let Err(error) = self.end(&positions)
        {
            tracing::warn!(%error, "QEMU keeps targets of copies open");
        }
        prepared
    }

    fn prepare_one(&mut self, copy: &DiskCopy) -> Result<(), VmmError> {
        let disk = self.disk(copy.position)?;
        disk.require_untouched()?;
        let runtime = self.runtime()?;
        let map = nodes::copy_name(copy.position) + ".qcow2";
        let _ = runtime.unlink(&map)?;
        let _ = runtime.file(&map, Open::CreateNew)?;
        let opened = self.open_target(copy, &map, disk.top.image.size);
        let unlinked = runtime.unlink(&map);
        opened?;
        let _ = unlinked?;
        Ok(())
    }

    fn open_target(&mut self, copy: &DiskCopy, map: &str, size: Bytes) -> Result<(), VmmError> {
        let [target, data, map_node] = node_names(copy.position);
        let path = absolute(&copy.target);
        let Some(path) = path.to_str() else {
            return Err(VmmError::Path { path });
        };
        let location = DiskLocation::RawFile(copy.target.clone());
        let direct = Caching::of(&location, Access::ReadWrite)? == Caching::Direct;
        let cache = json!({ "direct": direct, "no-flush": false });
        // Of no use to anybody after a crash, nor is what is in its tables by then.
        let fleeting = json!({ "direct": false, "no-flush": true });
        self.order(
            "blockdev-add",
            &json!({
                "driver": "file", "node-name": map_node, "filename": map, "cache": fleeting,
            }),
        )?;
        self.order(
            "blockdev-add",
            &json!({
                "driver": "file", "node-name": data, "filename": path, "cache": cache,
                "discard": "unmap",
            }),
        )?;
        let id = format!("{target}-make");
        let make = json!({
            "job-id": id,
            "options": {
                "driver": "qcow2", "file": map_node, "data-file": data, "size": size,
                "cluster-size": CLUSTER,
            },
        });
        self.order("blockdev-create", &make)?;
        self.finish_job("blockdev-create", &id)?;
        self.order(
            "blockdev-add",
            &json!({
                "driver": "qcow2", "node-name": target, "file": map_node, "data-file": data,
                "cache": cache, "discard": "unmap", "detect-zeroes": "unmap",
            }),
        )
    }

    pub(super) fn start(&mut self, positions: &[u8]) -> Result<(), VmmError> {
        let mut actions = Vec::new();
        for position in positions {
            let disk = self.disk(*position)?;
            disk.require_untouched()?;
            let name = nodes::copy_name(*position);
            let [target, ..] = node_names(*position);
            actions.push(json!({
                "type": "blockdev-backup",
                "data": {
                    "job-id": name,
                    "filter-node-name": name,
                    "device": disk.top.name,
                    "target": target,
                    "sync": "full",
                    "auto-dismiss": false,
                },
            }));
        }
        self.order("transaction", &json!({ "actions": Value::Array(actions) }))
    }

    pub(super) fn progress(&mut self, positions: &[u8]) -> Result<CopyProgress, VmmError> {
        let jobs = self.jobs()?;
        let mut progress = CopyProgress {
            done: 0,
            total: 0,
            complete: true,
        };
        for position in positions {
            let position = *position;
            let name = nodes::copy_name(position);
            let failed = |words: &str| VmmError::Copy {
                position,
                words: words.to_owned(),
            };
            let Some(job) = jobs.iter().find(|job| job.id == name) else {
                return Err(failed("it is not under way"));
            };
            if let Some(error) = &job.error {
                return Err(failed(error));
            }
            progress.done += job.done;
            progress.total += job.total;
            progress.complete &= job.is_over();
        }
        Ok(progress)
    }

    pub(super) fn end(&mut self, positions: &[u8]) -> Result<(), VmmError> {
        let mut jobs = Vec::new();
        for position in positions {
            let [target, ..] = node_names(*position);
            jobs.extend([nodes::copy_name(*position), format!("{target}-make")]);
        }
        self.end_jobs(&jobs)?;
        let there = self.named_nodes()?;
        for position in positions {
            // The target first: it lies over the others.
            for name in node_names(*position) {
                if there.iter().any(|node| node.name == name) {
                    self.delete_node(&name)?;
                }
            }
        }
        Ok(())
    }

    fn runtime(&self) -> Result<Directory, VmmError> {
        let socket = self.socket();
        Ok(Directory::open(socket.parent().unwrap_or(socket))?)
    }
}

/// The nodes that are ours: target, data, map.
fn node_names(position: u8) -> [String; 3] {
    let name = nodes::copy_name(position);
    ["target", "data", "map"].map(|role| format!("{name}-{role}"))
}
