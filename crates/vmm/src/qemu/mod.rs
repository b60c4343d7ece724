//! QEMU.
//!
//! A runtime directory holds, besides `console.sock` and `console.log`:
//!
//! | file | what it is |
//! |---|---|
//! | `control.sock` | QMP for commands, one client at a time |
//! | `events.sock` | QMP for the process that follows the machine for life |
//! | `agent.sock` | the guest agent's port, `org.qemu.guest_agent.0` |
//! | `control.lock`, `events.lock`, `agent.lock` | held by the client whose turn it is |
//! | `qemu.log` | QEMU's trace: how the last run ended |
//! | `qemu.err` | what QEMU itself had to say in the last run |
//!
//! Disks are read and written with `io_uring` and `O_DIRECT` where they work. Whether a file
//! takes `O_DIRECT` is tried on that file. Whether `io_uring` works only QEMU itself can tell
//! (a sysctl, a seccomp filter around us, the way QEMU was built), so where it does not, the
//! start is tried once more with threads.

mod agent;
mod command;
mod control;
mod copies;
mod ending;
mod jobs;
mod nodes;
mod overlay;
mod probe;
mod qmp;
mod raw_access;

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode};
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_host::lock::{self, Lock, LockError};
use sistemo_host::process::ProcessIdentity;
use sistemo_host::program::{Program, ProgramError, Running};
use sistemo_host::socket;
use sistemo_model::{Accelerator, StopHow, VmmKind};

use self::agent::Agent;
use self::command::{AGENT, CONSOLE, CONSOLE_LOG, CONTROL, EVENTS, MOST_DISKS};
use self::control::QemuControl;
use self::nodes::{Aio, Caching};
use self::qmp::Qmp;
pub use self::raw_access::RawAccess;

use crate::VmmError;
use crate::accelerator;
use crate::contract::{Control, GuestAgent, MachineSpec, Probe, Started, Vmm};

/// What QEMU says where another one has an image open (block/file-posix.c).
const STILL_LOCKED: &str = "Is another process using the image";
/// The kernel may take this long to let go of what a QEMU had open that has just ended: requests
/// in an `io_uring` are taken back after the process is gone.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

const PROGRAM: &str = "qemu-system-x86_64";
const SOCKETS: [&str; 4] = [CONTROL, EVENTS, CONSOLE, AGENT];
const CONTROL_LOCK: &str = "control.lock";
const EVENTS_LOCK: &str = "events.lock";
const AGENT_LOCK: &str = "agent.lock";

/// How long QEMU may take until it answers; it takes 0.1 s on an idle host.
const START_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// What a free QEMU may take to greet on a busy host.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// The QEMU of this host.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: Option<PathBuf>,
    patience: Duration,
}

impl Default for Qemu {
    fn default() -> Qemu {
        Qemu::new()
    }
}

impl Qemu {
    /// Takes the QEMU that is installed, when it is needed.
    #[must_use]
    pub fn new() -> Qemu {
        Qemu {
            program: None,
            patience: lock::PATIENCE,
        }
    }

    /// Takes the QEMU at a path.
    #[must_use]
    pub fn at(program: &Path) -> Qemu {
        Qemu {
            program: Some(program.to_owned()),
            ..Qemu::new()
        }
    }

    /// Sets how long [`Vmm::connect`] and [`Vmm::follow`] wait for another client to let go.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Qemu {
        self.patience = patience;
        self
    }

    fn program(&self) -> Result<Program, VmmError> {
        if let Some(path) = &self.program {
            return Ok(Program::at(path));
        }
        Program::find(PROGRAM).map_err(|_| VmmError::NotInstalled {
            program: PROGRAM.to_owned(),
        })
    }

    /// Waits for a turn at a socket and connects to it. QEMU takes one client of each at a time
    /// and lets the others wait without a word; the lock says who they wait for, and keeps more
    /// than one of ours from waiting in connect(2), which knows no time limit.
    fn take_turn(
        &self,
        directory: &Directory,
        name: &str,
        turn: &str,
    ) -> Result<(UnixStream, Lock), VmmError> {
        let path = directory.path_of(name);
        if !directory.contains(name)? {
            return Err(not_running(directory, name, io::ErrorKind::NotFound));
        }
        let purpose = format!("talking on {name}");
        let turn = Lock::acquire(&directory.path_of(turn), &purpose, self.patience);
        let turn = turn.map_err(|source| match source {
            LockError::Held { .. } => VmmError::Busy {
                socket: path.clone(),
                source,
            },
            LockError::File(_) => VmmError::Turn {
                socket: path.clone(),
                source,
            },
        })?;
        let stream = socket::connect(directory, name).map_err(|source| VmmError::NotRunning {
            socket: path,
            source,
        })?;
        Ok((stream, turn))
    }

    fn client(&self, runtime: &Path, name: &str, turn: &str) -> Result<QemuControl, VmmError> {
        let directory = Directory::open(runtime)?;
        let (stream, turn) = self.take_turn(&directory, name, turn)?;
        let path = directory.path_of(name);
        let qmp = Qmp::open(stream, &path, self.patience.max(GREETING_LIMIT))?;
        Ok(QemuControl::new(qmp, Some(turn)))
    }
}

fn not_running(directory: &Directory, name: &str, kind: io::ErrorKind) -> VmmError {
    let socket = directory.path_of(name);
    VmmError::NotRunning {
        source: FileError::new("connect to", &socket, kind),
        socket,
    }
}

impl Vmm for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn probe(&self) -> Result<Probe, VmmError> {
        let version = probe::version(&self.program()?)?;
        let accelerator::Choice {
            accelerator,
            reason,
        } = accelerator::choose();
        Ok(Probe {
            version,
            accelerator,
            reason,
        })
    }

    fn start(&self, spec: &MachineSpec, runtime: &Path, alive: &Lock) -> Result<Started, VmmError> {
        if spec.disks.len() > usize::from(MOST_DISKS) {
            return Err(VmmError::TooManyDisks {
                machine: spec.name.clone(),
                disks: spec.disks.len(),
                limit: MOST_DISKS,
            });
        }
        let attempt = Attempt {
            program: self.program()?.path().to_owned(),
            spec,
            directory: Directory::open(runtime)?,
            accelerator: accelerator::choose().accelerator,
            caching: spec
                .disks
                .iter()
                .map(|disk| Caching::of(&disk.location, disk.access))
                .collect::<Result<_, _>>()?,
            alive,
        };
        match attempt.run_when_released(Aio::IoUring) {
            Err(VmmError::Start { words, .. }) if words.contains("io_uring") => {
                tracing::info!(machine = %spec.name, %words, "io_uring does not work, using threads");
                attempt.run_when_released(Aio::Threads)
            }
            other => other,
        }
    }

    fn connect(&self, runtime: &Path) -> Result<Box<dyn Control>, VmmError> {
        Ok(Box::new(self.client(runtime, CONTROL, CONTROL_LOCK)?))
    }

    fn follow(&self, runtime: &Path) -> Result<Box<dyn Control>, VmmError> {
        Ok(Box::new(self.client(runtime, EVENTS, EVENTS_LOCK)?))
    }

    fn guest_agent(&self, runtime: &Path) -> Result<Option<Box<dyn GuestAgent>>, VmmError> {
        // QEMU takes a client whether or not anybody in the guest listens.
        let listens = self
            .client(runtime, CONTROL, CONTROL_LOCK)?
            .agent_listens()?;
        if !listens {
            return Ok(None);
        }
        let directory = Directory::open(runtime)?;
        let (stream, turn) = self.take_turn(&directory, AGENT, AGENT_LOCK)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let number = now.map_or(1, |now| now.subsec_nanos());
        let path = directory.path_of(AGENT);
        let agent = Agent::open(stream, &path, number, Some(turn))?;
        Ok(Some(Box::new(agent)))
    }

    fn ending(&self, runtime: &Path) -> Result<Option<StopHow>, VmmError> {
        Ok(ending::read(&Directory::open(runtime)?)?)
    }
}

/// One try to start a machine.
struct Attempt<'a> {
    program: PathBuf,
    spec: &'a MachineSpec,
    directory: Directory,
    accelerator: Accelerator,
    caching: Vec<Caching>,
    alive: &'a Lock,
}

impl Attempt<'_> {
    /// Runs, and runs again while the QEMU before it has not let go of the disks. That one is
    /// gone: whoever starts a machine has its run lock.
    fn run_when_released(&self, aio: Aio) -> Result<Started, VmmError> {
        let deadline = Instant::now() + RELEASE_LIMIT;
        loop {
            match self.run(aio) {
                Err(VmmError::Start { words, .. })
                    if words.contains(STILL_LOCKED) && Instant::now() < deadline =>
                {
                    tracing::info!(%words, "a disk is still locked, trying again");
                    thread::sleep(RELEASE_PAUSE);
                }
                other => return other,
            }
        }
    }

    fn run(&self, aio: Aio) -> Result<Started, VmmError> {
        let arguments = command::arguments(self.spec, self.accelerator, aio, &self.caching)?;
        let messages = self.clear()?;
        let fail = |source| match source {
            ProgramError::NotInstalled { name } => VmmError::NotInstalled { program: name },
            source => VmmError::Spawn {
                machine: self.spec.name.clone(),
                source,
            },
        };
        let mut running = Program::at(&self.program)
            .args(arguments)
            .current_dir(self.directory.path())
            .inherit(self.alive)
            .and_then(|program| program.spawn_logged(messages))
            .map_err(fail)?;
        let started = self.bring_up(&mut running);
        if started.is_err() {
            running.kill();
        }
        started.map_err(|error| self.explain(&error).unwrap_or(error))
    }

    /// Removes what the last run left. It must be gone for good: after a power cut, the word of
    /// the run before would be taken for that of the run that was cut off.
    fn clear(&self) -> Result<std::fs::File, VmmError> {
        for name in SOCKETS {
            let _ = self.directory.unlink(name)?;
        }
        for name in [ending::MESSAGES, ending::TRACE] {
            let _ = self.directory.remove(name)?;
        }
        // Made here for its mode; QEMU's own would be readable by everyone.
        self.directory.file(CONSOLE_LOG, Open::CreateOrOpen)?;
        Ok(self.directory.file(ending::MESSAGES, Open::CreateNew)?)
    }

    fn bring_up(&self, running: &mut Running) -> Result<Started, VmmError> {
        let deadline = Instant::now() + START_LIMIT;
        let stream = loop {
            match socket::connect(&self.directory, CONTROL) {
                Ok(stream) => break stream,
                Err(error) => self.wait_or_give_up(running, deadline, &error)?,
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let qmp = Qmp::open(stream, &self.directory.path_of(CONTROL), left)?;
        let mut control = QemuControl::new(qmp, None);
        for name in SOCKETS {
            let owner = Mode::RUSR | Mode::WUSR;
            rustix::fs::chmodat(&self.directory, name, owner, AtFlags::empty()).map_err(
                |error| {
                    let path = self.directory.path_of(name);
                    FileError::new("close to others", path, error)
                },
            )?;
        }
        let pid = running.pid();
        let process = ProcessIdentity::of(pid)
            .map_err(|source| VmmError::Process {
                machine: self.spec.name.clone(),
                pid,
                source,
            })?
            .ok_or_else(|| self.failed("QEMU ended".into()))?;
        control.resume()?;
        Ok(Started {
            process,
            accelerator: self.accelerator,
        })
    }

    fn wait_or_give_up(
        &self,
        running: &mut Running,
        deadline: Instant,
        error: &FileError,
    ) -> Result<(), VmmError> {
        let not_yet = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        if !not_yet.contains(&error.source.kind()) {
            return Err(self.failed(format!("{error}: {}", error.source)));
        }
        match running.try_wait() {
            Ok(None) if Instant::now() < deadline => {
                thread::sleep(PAUSE);
                Ok(())
            }
            Ok(None) => Err(self.failed(format!(
                "QEMU did not answer within {} s",
                START_LIMIT.as_secs()
            ))),
            Ok(Some(status)) => Err(self.failed(format!("QEMU ended ({status})"))),
            Err(error) => Err(self.failed(format!("QEMU was lost: {error}"))),
        }
    }

    fn failed(&self, words: String) -> VmmError {
        VmmError::Start {
            machine: self.spec.name.clone(),
            words,
        }
    }

    /// Puts QEMU's last words, where it left some, in the place of what we saw of its end.
    fn explain(&self, seen: &VmmError) -> Option<VmmError> {
        if !matches!(seen, VmmError::Start { .. }) && !seen.is_gone() {
            return None;
        }
        let words = ending::last_words(&self.directory).ok()?;
        if words.is_empty() {
            return seen
                .is_gone()
                .then(|| self.failed("QEMU ended without a word".into()));
        }
        // QEMU says which rule failed and not why; trying the port ourselves tells.
        let forwards = &self.spec.network.forwards;
        let taken = forwards
            .iter()
            .find(|forward| words.contains(&format!("'{}'", command::forward_rule(forward))));
        Some(match taken {
            Some(forward) => VmmError::Forward {
                machine: self.spec.name.clone(),
                host: forward.host,
                source: why_not(forward.host),
            },
            None => self.failed(words),
        })
    }
}

fn why_not(host: std::net::SocketAddr) -> io::Error {
    if host.is_ipv6() {
        let text = "QEMU's user network forwards IPv4 addresses only";
        return io::Error::new(io::ErrorKind::Unsupported, text);
    }
    match TcpListener::bind(host) {
        Err(error) => error,
        // Whoever had it has just let go.
        Ok(_) => io::ErrorKind::AddrInUse.into(),
    }
}
