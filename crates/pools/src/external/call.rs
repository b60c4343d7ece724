//! One call of an external driver: one process, one request, one answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use sistemo_host::lock::{Lock, PATIENCE};
use sistemo_host::program::{Ended, Program};

use super::executable;
use super::fault::DriverFault;
use super::protocol::{ErrorAnswer, ErrorBody, Operation, Request};

/// The longest answer but to a listing, in bytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// The longest listing, in bytes: room for about 100,000 volumes.
const LONGEST_LIST: usize = 64 << 20;
/// How much of a wrong answer an error shows, in characters.
const SHOWN: usize = 200;

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To say what the driver is and can.
    pub introduction: Duration,
    /// For operations whose time does not grow with the data.
    pub ordinary: Duration,
    /// For operations that may copy or free a volume's data.
    pub copying: Duration,
    /// To wait for an earlier call that works on the same volume.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            introduction: Duration::from_secs(10),
            ordinary: Duration::from_secs(60),
            copying: Duration::from_secs(6 * 60 * 60),
            patience: PATIENCE,
        }
    }
}

impl Limits {
    fn of(&self, operation: &Operation) -> Duration {
        match operation {
            Operation::Capabilities => self.introduction,
            other if other.may_take_long() => self.copying,
            _ => self.ordinary,
        }
    }
}

/// What came of a call.
pub(super) enum Answer<A> {
    Done(A),
    Refused(ErrorBody),
}

/// Asks a driver; it inherits `locks`, so that it holds them for as long as it works, also where
/// it outlives this process.
pub(super) fn call<A: DeserializeOwned>(
    path: &Path,
    request: &Request,
    limits: &Limits,
    locks: &[Lock],
) -> Result<Answer<A>, DriverFault> {
    let executable: PathBuf = executable::trusted(path)?;
    let text = serde_json::to_vec(request).map_err(DriverFault::Request)?;
    let most = match request.operation {
        Operation::List => LONGEST_LIST,
        _ => LONGEST_ANSWER,
    };
    let mut program = Program::at(&executable)
        .bare_environment()
        .current_dir(Path::new("/"))
        .input(text)
        .time_limit(limits.of(&request.operation));
    for (name, value) in request.variables().map_err(DriverFault::Request)? {
        program = program.env(name, value);
    }
    for lock in locks {
        program = program.inherit(lock)?;
    }
    let ended = program.run_confined(most)?;
    if !ended.stderr.is_empty() {
        let operation = request.operation.word();
        tracing::debug!(driver = %executable.display(), operation, "{}", ended.stderr);
    }
    understand(ended)
}

fn understand<A: DeserializeOwned>(ended: Ended) -> Result<Answer<A>, DriverFault> {
    let Ended {
        status,
        stdout,
        stderr: message,
    } = ended;
    if status.code() == Some(1)
        && let Ok(refused) = serde_json::from_slice::<ErrorAnswer>(&stdout)
    {
        return Ok(Answer::Refused(refused.error));
    }
    if !status.success() {
        return Err(DriverFault::Crashed { status, message });
    }
    serde_json::from_slice(&stdout)
        .map(Answer::Done)
        .map_err(|source| DriverFault::NoAnswer {
            shown: beginning_of(&stdout),
            message,
            source,
        })
}

fn beginning_of(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[..output.len().min(4 * SHOWN)]);
    let text = text.trim();
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!("{}{more}", shown.escape_debug())
}
