//! Commands to a running QEMU, and what it tells.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use sistemo_host::lock::Lock;
use sistemo_model::{Bytes, PauseCause, StopHow};

use super::command::AGENT_CHANNEL;
use super::qmp::{Event, Qmp};
use super::{ending, nodes};
use crate::VmmError;
use crate::contract::{Control, CopyProgress, DiskCopy, DiskOperation, RunStatus, VmmEvent};

/// How long a command may take. Holding the processors waits for what they asked of the disks,
/// which a slow host takes its time for.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A client of one of QEMU's two QMP sockets.
#[derive(Debug)]
pub(super) struct QemuControl {
    qmp: Qmp,
    /// Held for as long as the socket is ours.
    _turn: Option<Lock>,
}

impl QemuControl {
    pub(super) fn new(qmp: Qmp, turn: Option<Lock>) -> QemuControl {
        QemuControl { qmp, _turn: turn }
    }

    fn execute(&mut self, command: &'static str) -> Result<(), VmmError> {
        self.qmp.execute(command, None, COMMAND_LIMIT).map(drop)
    }

    pub(super) fn order(
        &mut self,
        command: &'static str,
        arguments: &Value,
    ) -> Result<(), VmmError> {
        let reply = self.qmp.execute(command, Some(arguments), COMMAND_LIMIT);
        reply.map(drop)
    }

    pub(super) fn ask<T: for<'a> Deserialize<'a>>(
        &mut self,
        command: &'static str,
        arguments: Option<&Value>,
    ) -> Result<T, VmmError> {
        let reply = self.qmp.execute(command, arguments, COMMAND_LIMIT)?;
        serde_json::from_str(reply.get()).map_err(|error| self.qmp.garbled(error))
    }

    /// The socket that it talks on.
    pub(super) fn socket(&self) -> &Path {
        self.qmp.socket()
    }

    pub(super) fn take_events(&mut self, name: &str) -> Vec<Event> {
        self.qmp.take_events(name)
    }

    /// Whether somebody in the guest has the agent's port open.
    pub(super) fn agent_listens(&mut self) -> Result<bool, VmmError> {
        let ports: Vec<ChardevInfo> = self.ask("query-chardev", None)?;
        Ok(ports
            .iter()
            .any(|port| port.label == AGENT_CHANNEL && port.open))
    }

    /// Why the processors are held after a disk error. Where one disk is full and another
    /// broken, the broken one is what a user must hear of.
    fn disk_cause(&mut self) -> Result<PauseCause, VmmError> {
        let disks: Vec<BlockInfo> = self.ask("query-block", None)?;
        let failed = |disk: &BlockInfo| disk.io_status.as_deref() == Some("failed");
        Ok(if disks.iter().any(failed) {
            PauseCause::DiskError
        } else {
            PauseCause::DiskFull
        })
    }

    /// What an event means; `None` for one that is of no interest.
    fn understand(&mut self, event: &Event) -> Result<Option<VmmEvent>, VmmError> {
        Ok(match event.name.as_str() {
            // QEMU does not say why it stopped; its state does.
            "STOP" => match self.status()? {
                RunStatus::Paused(cause) => Some(VmmEvent::Paused(cause)),
                RunStatus::Stuck => Some(VmmEvent::Stuck),
                // It runs again already, or is about to end: another event says so.
                RunStatus::Starting | RunStatus::Running | RunStatus::Ending => None,
            },
            "RESUME" => Some(VmmEvent::Resumed),
            "RESET" => Some(VmmEvent::Reset),
            "SHUTDOWN" => {
                let cause = event.data["reason"].as_str().unwrap_or_default();
                // Whatever a newer QEMU calls it, the guest did not power itself off.
                let how = ending::from_name(cause).unwrap_or(StopHow::Forced);
                Some(VmmEvent::Ending(how))
            }
            "BLOCK_IO_ERROR" => {
                let text = |key: &str| event.data[key].as_str().unwrap_or_default();
                Some(VmmEvent::DiskError {
                    position: nodes::position_of(text("node-name")),
                    operation: match text("operation") {
                        "read" => DiskOperation::Read,
                        _ => DiskOperation::Write,
                    },
                    full: event.data["nospace"].as_bool().unwrap_or(false),
                    message: text("reason").to_owned(),
                })
            }
            _ => None,
        })
    }
}

/// `StatusInfo` of QEMU's qapi/run-state.json.
#[derive(Deserialize)]
struct StatusInfo {
    status: String,
}

/// `ChardevInfo` of QEMU's qapi/char.json.
#[derive(Deserialize)]
struct ChardevInfo {
    label: String,
    /// Whether the guest has opened it.
    #[serde(rename = "frontend-open")]
    open: bool,
}

/// `BlockInfo` of QEMU's qapi/block-core.json.
#[derive(Deserialize)]
struct BlockInfo {
    #[serde(rename = "io-status")]
    io_status: Option<String>,
}

impl Control for QemuControl {
    fn status(&mut self) -> Result<RunStatus, VmmError> {
        let StatusInfo { status } = self.ask("query-status", None)?;
        Ok(match status.as_str() {
            "running" | "suspended" => RunStatus::Running,
            "prelaunch" | "inmigrate" | "restore-vm" => RunStatus::Starting,
            "shutdown" | "guest-panicked" => RunStatus::Ending,
            "internal-error" => RunStatus::Stuck,
            "io-error" => RunStatus::Paused(self.disk_cause()?),
            _ => RunStatus::Paused(PauseCause::Requested),
        })
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.execute("stop")
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.execute("cont")
    }

    fn power_button(&mut self) -> Result<(), VmmError> {
        self.execute("system_powerdown")
    }

    fn quit(&mut self) -> Result<(), VmmError> {
        match self.execute("quit") {
            Err(error) if error.is_gone() => Ok(()),
            other => other,
        }
    }

    fn next_event(&mut self, limit: Duration) -> Result<Option<VmmEvent>, VmmError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(event) = self.qmp.next_event(left)? else {
                return Ok(None);
            };
            if let Some(event) = self.understand(&event)? {
                return Ok(Some(event));
            }
        }
    }

    fn grow_disk(&mut self, position: u8, size: Bytes) -> Result<(), VmmError> {
        let disk = self.disk(position)?;
        let before = disk.top.image.size;
        if size < before {
            return Err(VmmError::Shrink {
                position,
                size: before,
                asked: size,
            });
        }
        let resize = json!({ "node-name": disk.top.name, "size": size });
        self.order("block_resize", &resize)
    }

    fn disk_file(&mut self, position: u8) -> Result<PathBuf, VmmError> {
        let disk = self.disk(position)?;
        disk.require_untouched()?;
        let file = disk.top_file().ok_or(VmmError::NoDisk { position })?;
        Ok(file.to_owned())
    }

    fn switch_disk(&mut self, position: u8, overlay: &Path) -> Result<(), VmmError> {
        self.switch(position, overlay)
    }

    fn flatten_disk(
        &mut self,
        position: u8,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), VmmError> {
        self.flatten(position, progress)
    }

    fn flush_disk(&mut self, position: u8) -> Result<(), VmmError> {
        self.flush_file(position)
    }

    fn prepare_copies(&mut self, copies: &[DiskCopy]) -> Result<(), VmmError> {
        self.prepare(copies)
    }

    fn start_copies(&mut self, positions: &[u8]) -> Result<(), VmmError> {
        self.start(positions)
    }

    fn copies(&mut self, positions: &[u8]) -> Result<CopyProgress, VmmError> {
        self.progress(positions)
    }

    fn end_copies(&mut self, positions: &[u8]) -> Result<(), VmmError> {
        self.end(positions)
    }
}
