//! Reaching a machine over SSH: shells, commands, and waiting until it answers.

use std::io::{IsTerminal, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::directory::FileError;
use sistemo_host::program::{Program, ProgramError};
use sistemo_model::{Machine, MachineId, MachineState, Reference};
use sistemo_vmm::RunStatus;

use super::LOOPBACK;
use crate::engine::Engine;
use crate::error::{Error, Result};

const KNOWN_HOSTS: &str = "known_hosts";
/// From a machine's directory, `machines/<id>`.
const KEY: &str = "../../ssh/sistemo_key";

/// ssh(1) ends with this where it fails itself, and also where the command does.
const SSH_FAILED: i32 = 255;
/// A forwarded port accepts before the guest runs, and stays silent until its server does.
const BANNER_PATIENCE: Duration = Duration::from_secs(2);
const LOGIN_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_millis(100);

impl Engine {
    /// Opens a shell on a machine, or runs a command there as ssh(1) does: its words joined by
    /// spaces and read by the remote shell.
    ///
    /// # Errors
    /// Where the machine does not run or `ssh` is missing.
    pub fn open_shell(&self, reference: &Reference, command: &[String]) -> Result<ExitStatus> {
        let machine = self.find_running(reference, "open a shell on it")?;
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        self.ssh(&machine)?
            .args(terminal.then_some("-t"))
            .arg("--")
            .arg(destination())
            .args(command)
            .run_in_foreground()
            .map_err(|source| Error::Program {
                action: "run ssh",
                source,
            })
    }

    /// Runs a command on a machine, each argument arriving as it is given.
    ///
    /// # Errors
    /// Where the machine does not run, cannot be reached, or `ssh` is missing.
    pub fn execute(&self, reference: &Reference, arguments: &[String]) -> Result<ExitStatus> {
        let machine = self.find_running(reference, "run a command on it")?;
        let unreachable = || Error::Ssh {
            machine: machine.name.clone(),
        };
        // Only a NUL byte cannot be quoted, and no argument vector holds one.
        let command =
            shlex::try_join(arguments.iter().map(String::as_str)).map_err(|_| unreachable())?;
        let status = self
            .ssh(&machine)?
            // The login shell stays, so that a command that is killed has a status of its own.
            .args(["-T", "--", destination(), &format!("{command}; exit $?")])
            .run_in_foreground()
            .map_err(|source| Error::Program {
                action: "run ssh",
                source,
            })?;
        if status.code() == Some(SSH_FAILED) && !self.login_works(&machine)? {
            return Err(unreachable());
        }
        Ok(status)
    }

    pub(super) fn find_running(
        &self,
        reference: &Reference,
        action: &'static str,
    ) -> Result<Machine> {
        let machine = self.find_machine(reference)?;
        match machine.state {
            MachineState::Running | MachineState::Stopping(_) => Ok(machine),
            MachineState::Paused(_) if self.runs_after_all(&machine) => Ok(machine),
            state => Err(Error::MachineInactive {
                machine: machine.name,
                state,
                action,
            }),
        }
    }

    /// Whether a machine that is recorded as paused runs: a snapshot holds one for an instant, and
    /// keeps its turn at the VMM until it has let go, so that the answer waits for that.
    fn runs_after_all(&self, machine: &Machine) -> bool {
        let status = self.command(machine, "look at", |control| control.status());
        matches!(status, Ok(RunStatus::Running))
    }

    /// ssh(1) as it reaches a machine: our key, no configuration of the user's, and the host key
    /// pinned at the first contact. The port is held by the machine's own VMM, so that contact
    /// cannot be anybody else's.
    fn ssh(&self, machine: &Machine) -> Result<Program> {
        self.ssh_key()?;
        let program = Program::find("ssh").map_err(|source| Error::Program {
            action: "reach the machine",
            source,
        })?;
        let port = machine.ssh_port.to_string();
        // Paths relative to the machine's own directory: ssh gives quotes, % and $ in a path a
        // meaning, and a data directory may have any of them in its name.
        Ok(program
            .current_dir(&self.make_runtime(machine.id)?)
            .args(["-F", "none", "-p", port.as_str(), "-i", KEY])
            .args(option("IdentitiesOnly", "yes"))
            .args(option("IdentityAgent", "none"))
            .args(option("GlobalKnownHostsFile", "none"))
            .args(option("UserKnownHostsFile", KNOWN_HOSTS))
            .args(option("HostKeyAlias", &machine.id.to_string()))
            .args(option("StrictHostKeyChecking", "accept-new"))
            .args(option("UpdateHostKeys", "no"))
            .args(option("CheckHostIP", "no"))
            .args(option("LogLevel", "ERROR"))
            .args(option("ConnectTimeout", "10")))
    }

    /// Forgets the host key that was pinned at the first contact: the guest begins anew, and makes
    /// another.
    pub(super) fn forget_host_key(&self, id: MachineId) -> Result<()> {
        let path = self.runtime(id).join(KNOWN_HOSTS);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
                action: "forget a machine's host key".to_owned(),
                source: FileError::new("remove", path, error),
            }),
            _ => Ok(()),
        }
    }

    fn login_works(&self, machine: &Machine) -> Result<bool> {
        let program = self.ssh(machine)?.args(option("BatchMode", "yes"));
        let login = program
            .args(["-T", "--", destination(), "true"])
            .time_limit(LOGIN_PATIENCE);
        match login.run() {
            Ok(_) => Ok(true),
            Err(ProgramError::Failed { message, .. }) => {
                tracing::debug!(machine = %machine.name, message, "cannot log in yet");
                Ok(false)
            }
            Err(ProgramError::TimedOut { .. }) => Ok(false),
            Err(source) => Err(Error::Program {
                action: "run ssh",
                source,
            }),
        }
    }

    /// Waits until the machine's SSH server shows its banner and lets our key in.
    pub(crate) fn wait_until_answering(&self, id: MachineId) -> Result<()> {
        let limit = self.settings.answer_timeout.value;
        let deadline = Instant::now() + limit;
        let machine = self.catalogue.read(|session| session.machine(id))?;
        self.reporter
            .stage(&format!("waiting until {} answers", machine.name));
        let answered = self.poll_answer(&machine, deadline, limit);
        self.reporter.stage_over();
        answered
    }

    fn poll_answer(&self, machine: &Machine, deadline: Instant, limit: Duration) -> Result<()> {
        let address = SocketAddr::new(LOOPBACK, machine.ssh_port);
        loop {
            let now = match self.settle(machine.id) {
                // One that is gone with its stop, and its console's log with it.
                Err(Error::NotFound { .. }) => {
                    return Err(Error::EndedEarly {
                        machine: machine.name.clone(),
                        how: "gone".to_owned(),
                        console: String::new(),
                    });
                }
                settled => settled?,
            };
            if let MachineState::Stopped(how) = now.state {
                return Err(Error::EndedEarly {
                    machine: now.name,
                    how: how.map_or("never ran", |how| how.as_str()).to_owned(),
                    console: self.console_tail(machine.id),
                });
            }
            if let MachineState::Paused(_) = now.state {
                let (machine, state) = (now.name, now.state);
                return Err(Error::MachineInactive {
                    machine,
                    state,
                    action: "wait for its answer",
                });
            }
            if shows_banner(address) && self.login_works(machine)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let machine = machine.name.clone();
                return Err(Error::NotAnswering {
                    machine,
                    seconds: limit.as_secs(),
                });
            }
            thread::sleep(PAUSE_BETWEEN_TRIES);
        }
    }
}

fn destination() -> &'static str {
    "root@127.0.0.1"
}

fn option(name: &str, value: &str) -> [String; 2] {
    ["-o".to_owned(), format!("{name}={value}")]
}

fn shows_banner(address: SocketAddr) -> bool {
    let look = || -> Result<bool, std::io::Error> {
        let mut stream = TcpStream::connect_timeout(&address, BANNER_PATIENCE)?;
        stream.set_read_timeout(Some(BANNER_PATIENCE))?;
        let mut banner = [0; 4];
        stream.read_exact(&mut banner)?;
        Ok(&banner == b"SSH-")
    };
    look().unwrap_or(false)
}
