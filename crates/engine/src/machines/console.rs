//! A machine's serial console, and what it has printed there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use sistemo_host::directory::{Directory, Open};
use sistemo_host::socket;
use sistemo_model::{MachineId, Reference};

use crate::engine::Engine;
use crate::error::{Error, Result};

const CONSOLE_SOCKET: &str = "console.sock";
pub(super) const CONSOLE_LOG: &str = "console.log";
/// How much of the end of it an error quotes.
const TAIL: u64 = 600;

impl Engine {
    /// A machine's serial console; what is written to it arrives at the guest.
    ///
    /// # Errors
    /// Where the machine does not run.
    pub fn console(&self, reference: &Reference) -> Result<UnixStream> {
        let machine = self.find_running(reference, "open its console")?;
        Directory::open(&self.runtime(machine.id))
            .and_then(|directory| socket::connect(&directory, CONSOLE_SOCKET))
            .map_err(|source| Error::File {
                action: format!("open the console of {}", machine.name),
                source,
            })
    }

    /// The file that a machine's console output goes to. It is missing until the first start.
    ///
    /// # Errors
    /// Where there is no such machine.
    pub fn console_log(&self, reference: &Reference) -> Result<PathBuf> {
        let machine = self.find_machine(reference)?;
        Ok(self.runtime(machine.id).join(CONSOLE_LOG))
    }

    /// The last lines of a machine's console, for an error about its end.
    pub(super) fn console_tail(&self, id: MachineId) -> String {
        let read = |log: File| {
            let length = log.metadata()?.len();
            let mut tail = vec![0; usize::try_from(length.min(TAIL)).unwrap_or(0)];
            log.read_exact_at(&mut tail, length.saturating_sub(TAIL))?;
            std::io::Result::Ok(String::from_utf8_lossy(&tail).into_owned())
        };
        let log = Directory::open(&self.runtime(id))
            .and_then(|runtime| runtime.file(CONSOLE_LOG, Open::Read))
            .ok();
        let text = log.and_then(|log| read(log).ok()).unwrap_or_default();
        let shown: String = text
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect();
        shown.trim().to_owned()
    }
}
