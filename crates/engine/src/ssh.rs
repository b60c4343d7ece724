//! Reaching a machine: the product's own SSH key, pinned host keys, shells, commands, console.

use std::io::{IsTerminal, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use sistemo_host::directory::Directory;
use sistemo_host::lock::{Lock, LockError, PATIENCE};
use sistemo_host::program::{Program, ProgramError};
use sistemo_host::socket;
use sistemo_model::{Machine, MachineId, MachineState, Reference};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::machines::LOOPBACK;

const KEY: &str = "sistemo_key";
const KNOWN_HOSTS: &str = "known_hosts";
const CONSOLE_SOCKET: &str = "console.sock";
const CONSOLE_LOG: &str = "console.log";
const KEY_LIMIT: u64 = 16 << 10;

/// ssh(1) ends with this where it fails itself, and also where the command does.
const SSH_FAILED: i32 = 255;
/// A forwarded port accepts before the guest runs, and stays silent until its server does.
const BANNER_PATIENCE: Duration = Duration::from_secs(2);
const LOGIN_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_millis(100);
const CONSOLE_TAIL: u64 = 600;

/// The key that every guest lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SshKey {
    /// The public key, one line as in `authorized_keys`.
    pub public: String,
    /// The file of the private key.
    pub private_path: PathBuf,
    /// The file of the public key.
    pub public_path: PathBuf,
}

impl Engine {
    /// The product's own SSH key, made at its first use.
    ///
    /// # Errors
    /// Where `ssh-keygen` is missing or the key cannot be kept.
    pub fn ssh_key(&self) -> Result<SshKey> {
        let keep = |source| Error::File {
            action: "keep the SSH key".to_owned(),
            source,
        };
        let (directory, _) = Directory::create(&self.data_dir().join("ssh")).map_err(keep)?;
        let public = format!("{KEY}.pub");
        if !directory.contains(&public).map_err(keep)? {
            self.make_key(&directory)?;
        }
        let text = directory.read(&public, KEY_LIMIT).map_err(keep)?;
        Ok(SshKey {
            public: String::from_utf8_lossy(&text).trim().to_owned(),
            private_path: directory.path_of(KEY),
            public_path: directory.path_of(&public),
        })
    }

    /// Makes the key under temporary names. The public half gets its name last: where it is
    /// there, both are.
    fn make_key(&self, directory: &Directory) -> Result<()> {
        let keep = |source| Error::File {
            action: "keep the SSH key".to_owned(),
            source,
        };
        let make = |source| Error::Program {
            action: "make the SSH key",
            source,
        };
        let lock = directory.path_of(&format!("{KEY}.lock"));
        let busy = |error: LockError| Error::Busy {
            object: "the SSH key".to_owned(),
            holder: error.to_string(),
        };
        let _held = Lock::acquire(&lock, self.purpose(), PATIENCE).map_err(busy)?;
        let public = format!("{KEY}.pub");
        if directory.contains(&public).map_err(keep)? {
            return Ok(());
        }
        let temporary = format!("{KEY}.new");
        let temporary_public = format!("{temporary}.pub");
        for leftover in [&temporary, &temporary_public] {
            let _ = directory.unlink(leftover).map_err(keep)?;
        }
        Program::find("ssh-keygen")
            .map_err(make)?
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "sistemo", "-f"])
            .arg(directory.path_of(&temporary))
            .run()
            .map_err(make)?;
        directory.rename(&temporary, KEY).map_err(keep)?;
        directory.publish(&temporary_public, &public).map_err(keep)
    }

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
            .args(["-T", "--", destination(), &command])
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

    fn find_running(&self, reference: &Reference, action: &'static str) -> Result<Machine> {
        let machine = self.find_machine(reference)?;
        match machine.state {
            MachineState::Running | MachineState::Stopping(_) => Ok(machine),
            state => Err(Error::MachineInactive {
                machine: machine.name,
                state,
                action,
            }),
        }
    }

    /// ssh(1) as it reaches a machine: our key, no configuration of the user's, and the host key
    /// pinned at the first contact. The port is held by the machine's own VMM, so that contact
    /// cannot be anybody else's.
    fn ssh(&self, machine: &Machine) -> Result<Program> {
        let key = self.ssh_key()?;
        let known_hosts = self.runtime(machine.id).join(KNOWN_HOSTS);
        let program = Program::find("ssh").map_err(|source| Error::Program {
            action: "reach the machine",
            source,
        })?;
        let port = machine.ssh_port.to_string();
        Ok(program
            .args(["-F", "none", "-p", port.as_str(), "-i"])
            .arg(key.private_path)
            .args(option("IdentitiesOnly", "yes"))
            .args(option("IdentityAgent", "none"))
            .args(option("GlobalKnownHostsFile", "none"))
            .args(option(
                "UserKnownHostsFile",
                &known_hosts.display().to_string(),
            ))
            .args(option("HostKeyAlias", &machine.id.to_string()))
            .args(option("StrictHostKeyChecking", "accept-new"))
            .args(option("UpdateHostKeys", "no"))
            .args(option("CheckHostIP", "no"))
            .args(option("LogLevel", "ERROR"))
            .args(option("ConnectTimeout", "10")))
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
            let now = self.settle(machine.id)?;
            if let MachineState::Stopped(how) = now.state {
                return Err(Error::EndedEarly {
                    machine: now.name,
                    how: how.map_or("never ran", |how| how.as_str()).to_owned(),
                    console: self.console_tail(machine.id),
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

    /// The last lines of a machine's console, for an error about its end.
    fn console_tail(&self, id: MachineId) -> String {
        let read = || -> std::io::Result<String> {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::open(self.runtime(id).join(CONSOLE_LOG))?;
            let length = file.metadata()?.len();
            let mut tail = vec![0; usize::try_from(length.min(CONSOLE_TAIL)).unwrap_or(0)];
            file.read_exact_at(&mut tail, length.saturating_sub(CONSOLE_TAIL))?;
            let text = String::from_utf8_lossy(&tail).into_owned();
            Ok(text
                .chars()
                .filter(|c| !c.is_control() || *c == '\n')
                .collect())
        };
        read().unwrap_or_default().trim().to_owned()
    }
}

fn destination() -> &'static str {
    "root@127.0.0.1"
}

fn option(name: &str, value: &str) -> [String; 2] {
    // ssh_config(5) takes a value with spaces in double quotes, and % begins a token in some.
    [
        "-o".to_owned(),
        format!("{name}=\"{}\"", value.replace('%', "%%")),
    ]
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
