//! Running other programs: absolute executables and argument vectors, never a shell.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Where system programs are, also when an ordinary user's PATH leaves them out.
const SYSTEM_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The first descriptor that inherited ones are given; 0, 1 and 2 are the standard ones.
const FIRST_INHERITED: i32 = 3;

const KEPT_LINES: usize = 12;
const LONGEST_OUTPUT: u64 = 64 << 20;
/// How much of the standard error of a confined program is kept, in bytes.
const KEPT_ERROR: usize = 1 << 14;

/// Why a program did not do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no executable of that name on this host.
    #[error("{name} is not installed")]
    NotInstalled {
        /// The program's name.
        name: String,
    },
    /// It could not be started or spoken to.
    #[error("cannot run {}", path.display())]
    Start {
        /// The executable.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It ended with another status than 0.
    #[error("{name} failed ({status}){}", said(message))]
    Failed {
        /// The program's name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of what it wrote to stderr.
        message: String,
    },
    /// It did not end in time and was killed.
    #[error("{name} did not finish within {} s", limit.as_secs())]
    TimedOut {
        /// The program's name.
        name: String,
        /// How long it was given.
        limit: Duration,
    },
    /// It printed more than it may and was killed.
    #[error("{name} printed more than {limit} bytes")]
    TooMuchOutput {
        /// The program's name.
        name: String,
        /// How many bytes it may print.
        limit: usize,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// What a program that ended well printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The last lines of its standard error.
    pub stderr: String,
}

impl Output {
    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// How a program ended, well or not, and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The last lines of its standard error.
    pub stderr: String,
}

/// How a program ended, well or not, and all that it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transcript {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output and error, in the order in which it wrote them.
    pub text: String,
}

/// A program to be run, built up like [`std::process::Command`].
///
/// It starts with an empty standard input, `LC_ALL=C`, and none of our open files but those
/// given with [`Program::inherit`].
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    name: String,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    bare: bool,
    directory: Option<PathBuf>,
    inherited: Vec<OwnedFd>,
    input: Vec<u8>,
    limit: Option<Duration>,
    own_group: bool,
}

impl Program {
    /// Finds a program on PATH, then in the system's own directories.
    ///
    /// # Errors
    /// [`ProgramError::NotInstalled`].
    pub fn find(name: &str) -> Result<Program, ProgramError> {
        let path = locate(name).ok_or_else(|| ProgramError::NotInstalled {
            name: name.to_owned(),
        })?;
        Ok(Program::at(&path))
    }

    /// Takes the program at a path, without looking whether it is there.
    #[must_use]
    pub fn at(path: &Path) -> Program {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        Program {
            path: path.to_owned(),
            name,
            arguments: Vec::new(),
            environment: vec![("LC_ALL".into(), "C".into())],
            bare: false,
            directory: None,
            inherited: Vec::new(),
            input: Vec::new(),
            limit: None,
            own_group: false,
        }
    }

    /// The executable.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The arguments so far.
    #[must_use]
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Program {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Program {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives it nothing of our own environment: only what is set here, `LC_ALL=C`, and a `PATH`
    /// of the system's directories.
    #[must_use]
    pub fn bare_environment(mut self) -> Program {
        self.bare = true;
        self.env("PATH", SYSTEM_PATH.join(":"))
    }

    /// Runs it in a directory.
    #[must_use]
    pub fn current_dir(mut self, directory: &Path) -> Program {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Lets it inherit an open file, such as a [`Lock`](crate::lock::Lock). The first one
    /// becomes its descriptor 3, the next 4, and so on.
    ///
    /// # Errors
    /// Where this process has no descriptor left.
    pub fn inherit(mut self, file: &impl AsFd) -> Result<Program, ProgramError> {
        let file = file
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| ProgramError::Start {
                path: self.path.clone(),
                source,
            })?;
        self.inherited.push(file);
        Ok(self)
    }

    /// Gives it a standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Program {
        self.input = input.into();
        self
    }

    /// Kills it where it runs longer than this.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Program {
        self.limit = Some(limit);
        self
    }

    /// Makes it the first of a process group of its own: what it starts can be killed with it, and
    /// a key on the terminal interrupts us alone.
    #[must_use]
    pub fn own_group(mut self) -> Program {
        self.own_group = true;
        self
    }

    /// Lets another program, with arguments of its own, run it in its own place, as env(1) does.
    pub(crate) fn run_by(
        mut self,
        other: &Path,
        arguments: impl IntoIterator<Item = &'static str>,
    ) -> Program {
        let program = std::mem::replace(&mut self.path, other.to_owned());
        let first = arguments.into_iter().map(OsString::from);
        let first: Vec<_> = first.chain([program.into_os_string()]).collect();
        self.arguments.splice(0..0, first);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Where it cannot be started, ends with another status than 0, or takes too long.
    pub fn run(self) -> Result<Output, ProgramError> {
        self.run_watched(&mut |_| {})
    }

    /// Runs it to its end and passes on each line of its standard error as it comes; `\r` ends
    /// a line too, as progress meters use it.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_watched(self, watch: &mut dyn FnMut(&str)) -> Result<Output, ProgramError> {
        let Program {
            ref path,
            ref name,
            limit,
            ..
        } = self;
        let (path, name) = (path.clone(), name.clone());
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let (mut command, input) = self.into_command()?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|source| start_error(&path, source))?;
        drop(command);

        let mut stdin = child.stdin.take();
        let writer = thread::spawn(move || {
            if let Some(stdin) = &mut stdin {
                // A program that does not read all of its input may still succeed.
                let _ = stdin.write_all(&input);
            }
        });
        let stdout = child.stdout.take();
        let reader = thread::spawn(move || {
            let mut content = Vec::new();
            let stdout = stdout.map(|stdout| stdout.take(LONGEST_OUTPUT));
            stdout
                .map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut content))
                .map(|_| content)
        });
        let watchdog = limit.map(|limit| Watchdog::start(&child, limit));

        let stderr = child.stderr.take();
        let kept = stderr.map_or(Ok(VecDeque::new()), |stderr| keep_last_lines(stderr, watch));
        let status = child.wait();
        let timed_out = watchdog.is_some_and(Watchdog::stop);
        // Neither thread panics; a broken one has no input or output to tell of.
        let _ = writer.join();
        let stdout = reader.join().unwrap_or_else(|_| Ok(Vec::new()));

        if let (true, Some(limit)) = (timed_out, limit) {
            return Err(ProgramError::TimedOut { name, limit });
        }
        let (status, stdout) = (status.map_err(fail)?, stdout.map_err(fail)?);
        ended(name, status, stdout, kept.map_err(fail)?)
    }

    /// Runs it to its end, whatever happens to this process: it is not interrupted together
    /// with us by a key on the terminal, and what it prints goes where it cannot break, as a
    /// pipe does whose reader is gone. For programs that would leave something torn.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_undisturbed(self) -> Result<Output, ProgramError> {
        let Program {
            ref path, ref name, ..
        } = self;
        let (path, name) = (path.clone(), name.clone());
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let in_memory = |name| {
            rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
                .map(File::from)
                .map_err(|error| fail(error.into()))
        };
        let (stdout, stderr) = (in_memory("stdout")?, in_memory("stderr")?);
        let (mut command, _) = self.into_command()?;
        command.process_group(0).stdin(Stdio::null());
        command
            .stdout(stdout.try_clone().map_err(fail)?)
            .stderr(stderr.try_clone().map_err(fail)?);
        let status = command
            .status()
            .map_err(|source| start_error(&path, source))?;
        let read = |mut file: File| {
            let mut content = Vec::new();
            file.rewind()?;
            file.take(LONGEST_OUTPUT).read_to_end(&mut content)?;
            io::Result::Ok(content)
        };
        let (stdout, stderr) = (read(stdout).map_err(fail)?, read(stderr).map_err(fail)?);
        let kept = keep_last_lines(stderr.as_slice(), &mut |_| {}).map_err(fail)?;
        ended(name, status, stdout, kept)
    }

    /// Runs it to its end, whatever its status, and returns all that it said, up to 64 MiB; what
    /// comes after those takes no memory. For programs that find something wrong and say so. What it says goes where it cannot break, as
    /// in [`Program::run_undisturbed`].
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn transcribe(self) -> Result<Transcript, ProgramError> {
        let path = self.path.clone();
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let mut said = rustix::fs::memfd_create("said", MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| fail(error.into()))?;
        let (mut command, _) = self.into_command()?;
        // Two descriptors of one open file: what is written to either goes behind the other's.
        command
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(fail)?)
            .stderr(said.try_clone().map_err(fail)?);
        let mut child = command
            .spawn()
            .map_err(|source| start_error(&path, source))?;
        let status = wait_and_forget_beyond(LONGEST_OUTPUT, &said, &mut child).map_err(fail)?;
        let mut text = Vec::new();
        said.rewind().map_err(fail)?;
        said.take(LONGEST_OUTPUT)
            .read_to_end(&mut text)
            .map_err(fail)?;
        Ok(Transcript {
            status,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// Runs a program that is not trusted to end, nor to be brief, and returns how it ended,
    /// whatever its status. It has a process group of its own, so no key on the terminal
    /// interrupts it together with us; where it takes longer than its time limit, or prints more
    /// than `most` bytes, it is killed with all of that group.
    ///
    /// What it leaves running when it ends is not waited for, were it to keep our pipes open.
    ///
    /// # Errors
    /// Where it cannot be started, takes too long, or prints too much.
    pub fn run_confined(self, most: usize) -> Result<Ended, ProgramError> {
        let (path, name, limit) = (self.path.clone(), self.name.clone(), self.limit);
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let (mut command, input) = self.into_command()?;
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut child = command
            .spawn()
            .map_err(|source| start_error(&path, source))?;
        drop(command);
        let talked = Talk::begin(&mut child, input).and_then(|talk| talk.until_end(most, deadline));
        if !matches!(talked, Ok((Stop::Ended, _))) {
            // Nobody has waited for it yet, so its number is still its group's.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        }
        let status = child.wait().map_err(fail)?;
        let (stop, talk) = talked.map_err(fail)?;
        match stop {
            Stop::Ended => {}
            Stop::TooLong => {
                let limit = limit.unwrap_or_default();
                return Err(ProgramError::TimedOut { name, limit });
            }
            Stop::TooMuch => return Err(ProgramError::TooMuchOutput { name, limit: most }),
        }
        let kept = keep_last_lines(talk.error.as_slice(), &mut |_| {}).map_err(fail)?;
        Ok(Ended {
            status,
            stdout: talk.output,
            stderr: kept.into_iter().collect::<Vec<_>>().join("\n"),
        })
    }

    /// Runs it with our own standard input, output and error, and waits for it.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run_in_foreground(self) -> Result<ExitStatus, ProgramError> {
        let path = self.path.clone();
        let (mut command, _) = self.into_command()?;
        command
            .status()
            .map_err(|source| start_error(&path, source))
    }

    /// Starts it and does not wait. Its output is thrown away.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(self) -> Result<Running, ProgramError> {
        self.spawn_with_output(None)
    }

    /// Starts it and does not wait; what it prints goes to `output`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn_logged(self, output: File) -> Result<Running, ProgramError> {
        self.spawn_with_output(Some(output))
    }

    /// Starts it with these as its standard input, output and error, and does not wait.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn_connected(
        self,
        input: OwnedFd,
        output: OwnedFd,
        error: File,
    ) -> Result<Running, ProgramError> {
        let path = self.path.clone();
        let (mut command, _) = self.into_command()?;
        command.stdin(input).stdout(output).stderr(error);
        let child = command
            .spawn()
            .map_err(|source| start_error(&path, source))?;
        Ok(Running { child })
    }

    fn spawn_with_output(self, output: Option<File>) -> Result<Running, ProgramError> {
        let path = self.path.clone();
        let fail = |source| ProgramError::Start {
            path: path.clone(),
            source,
        };
        let (mut command, _) = self.into_command()?;
        command.stdin(Stdio::null());
        match output {
            Some(output) => {
                command
                    .stdout(output.try_clone().map_err(fail)?)
                    .stderr(output);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        let child = command
            .spawn()
            .map_err(|source| start_error(&path, source))?;
        Ok(Running { child })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts programs"
    )]
    fn into_command(self) -> Result<(Command, Vec<u8>), ProgramError> {
        let mut command = Command::new(&self.path);
        if self.bare {
            command.env_clear();
        }
        command.args(&self.arguments).envs(self.environment);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if self.own_group {
            command.process_group(0);
        }
        let mappings = (FIRST_INHERITED..)
            .zip(self.inherited)
            .map(|(child_fd, parent_fd)| FdMapping {
                parent_fd,
                child_fd,
            })
            .collect();
        command
            .fd_mappings(mappings)
            .map_err(|error| ProgramError::Start {
                path: self.path.clone(),
                source: io::Error::other(error),
            })?;
        Ok((command, self.input))
    }
}

/// What is said and heard over a running program's pipes, none of which is waited for alone.
struct Talk {
    process: OwnedFd,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    input: Vec<u8>,
    said: usize,
    output: Vec<u8>,
    /// The end of what it wrote to stderr.
    error: Vec<u8>,
}

/// Waits for the end of a program that writes to a file in memory, of which no more than `most`
/// bytes and what is written in a second take memory.
fn wait_and_forget_beyond(most: u64, said: &File, child: &mut Child) -> io::Result<ExitStatus> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let wait = || poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&second));
    while retry_on_intr(wait)? == 0 {
        let length = said.metadata()?.len();
        if length > most {
            let beyond = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(said, beyond, most, length - most)?;
        }
    }
    child.wait()
}

/// Why a talk is over.
enum Stop {
    Ended,
    TooLong,
    TooMuch,
}

impl Talk {
    fn begin(child: &mut Child, input: Vec<u8>) -> io::Result<Talk> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let own = |pipe: Option<OwnedFd>| {
            let pipe = pipe.map(File::from);
            if let Some(pipe) = &pipe {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            io::Result::Ok(pipe)
        };
        Ok(Talk {
            process,
            stdin: own(child.stdin.take().map(OwnedFd::from))?,
            stdout: own(child.stdout.take().map(OwnedFd::from))?,
            stderr: own(child.stderr.take().map(OwnedFd::from))?,
            input,
            said: 0,
            output: Vec::new(),
            error: Vec::new(),
        })
    }

    fn until_end(mut self, most: usize, deadline: Option<Instant>) -> io::Result<(Stop, Talk)> {
        loop {
            let ended = self.wait(deadline)?;
            self.say()?;
            self.hear(most)?;
            if self.output.len() > most {
                return Ok((Stop::TooMuch, self));
            }
            if ended {
                return Ok((Stop::Ended, self));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok((Stop::TooLong, self));
            }
        }
    }

    /// Waits until there is something to do; returns whether the program has ended. What it
    /// printed before is then in the pipes.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut polled = vec![PollFd::new(&self.process, PollFlags::IN)];
        let heard = [&self.stdout, &self.stderr];
        polled.extend(
            heard
                .into_iter()
                .flatten()
                .map(|p| PollFd::new(p, PollFlags::IN)),
        );
        polled.extend(self.stdin.iter().map(|p| PollFd::new(p, PollFlags::OUT)));
        match poll(&mut polled, left.as_ref()) {
            Ok(_) => Ok(!polled[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn say(&mut self) -> io::Result<()> {
        while let Some(stdin) = &mut self.stdin {
            match stdin.write(&self.input[self.said..]) {
                Ok(written) => self.said += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A program that does not read all of its input may still succeed.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.said = self.input.len();
                }
                Err(error) => return Err(error),
            }
            if self.said == self.input.len() {
                self.stdin = None;
            }
        }
        Ok(())
    }

    fn hear(&mut self, most: usize) -> io::Result<()> {
        hear(&mut self.stdout, &mut self.output, |output| {
            output.len() > most
        })?;
        hear(&mut self.stderr, &mut self.error, |error| {
            // Only the last lines are kept; an endless stream must not keep us here.
            let surplus = error.len().saturating_sub(KEPT_ERROR);
            error.drain(..surplus);
            surplus > 0
        })
    }
}

/// Reads what is in a pipe until it is empty or `enough` says so.
fn hear(
    pipe: &mut Option<File>,
    into: &mut Vec<u8>,
    mut enough: impl FnMut(&mut Vec<u8>) -> bool,
) -> io::Result<()> {
    let mut buffer = [0; 1 << 14];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(length) => {
                into.extend_from_slice(&buffer[..length]);
                if enough(into) {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn ended(
    name: String,
    status: ExitStatus,
    stdout: Vec<u8>,
    kept: VecDeque<String>,
) -> Result<Output, ProgramError> {
    let stderr = kept.into_iter().collect::<Vec<_>>().join("\n");
    if status.success() {
        Ok(Output { stdout, stderr })
    } else {
        Err(ProgramError::Failed {
            name,
            status,
            message: stderr.trim().to_owned(),
        })
    }
}

fn start_error(path: &Path, source: io::Error) -> ProgramError {
    if source.kind() == io::ErrorKind::NotFound && !path.exists() {
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        return ProgramError::NotInstalled { name };
    }
    ProgramError::Start {
        path: path.to_owned(),
        source,
    }
}

/// A program that was started and not waited for.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What waitpid(2) says.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// How it ended, where it has.
    ///
    /// # Errors
    /// What waitpid(2) says.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it and waits until it is gone; one that has ended is no error.
    pub fn kill(&mut self) {
        // Both fail only where the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Kills it with all of its [group](Program::own_group) and waits until it is gone; what has
    /// ended is no error.
    pub fn kill_group(&mut self) {
        // A child that nobody has waited for keeps its number, so this is no other group.
        if let Ok(None) = self.child.try_wait() {
            let group = Pid::from_child(&self.child);
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.kill();
    }
}

/// Where a program is, if it is installed.
#[must_use]
pub fn locate(name: &str) -> Option<PathBuf> {
    search_path()
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// The absolute directories of PATH, then the system's own.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    let own_path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&own_path)
        .filter(|directory| directory.is_absolute())
        .chain(SYSTEM_PATH.iter().map(PathBuf::from))
        .collect()
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The exit status as a shell gives it: 128 and the signal's number for a killed program.
#[must_use]
pub fn shell_status(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

fn keep_last_lines(stream: impl Read, watch: &mut dyn FnMut(&str)) -> io::Result<VecDeque<String>> {
    let mut kept = VecDeque::new();
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(1 << 16).read_until(b'\n', &mut line)? == 0 {
            return Ok(kept);
        }
        let text = String::from_utf8_lossy(&line);
        for part in text
            .split(['\r', '\n'])
            .map(str::trim_end)
            .filter(|part| !part.is_empty())
        {
            watch(part);
            kept.push_back(part.to_owned());
            if kept.len() > KEPT_LINES {
                kept.pop_front();
            }
        }
    }
}

/// Kills a program that takes too long.
struct Watchdog {
    cancel: std::sync::mpsc::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(child: &Child, limit: Duration) -> Watchdog {
        let identity = crate::process::ProcessIdentity::of(child.id());
        let (cancel, cancelled) = std::sync::mpsc::channel();
        let deadline = Instant::now() + limit;
        let thread = thread::spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            if cancelled.recv_timeout(left) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return false;
            }
            if let Ok(Some(identity)) = identity {
                // It is our own child, so the signal cannot be refused.
                let _ = identity.end(crate::process::Ending::Kill);
            }
            true
        });
        Watchdog { cancel, thread }
    }

    /// Calls it off; returns whether it had to act.
    fn stop(self) -> bool {
        drop(self.cancel);
        self.thread.join().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_arguments_and_input_as_they_are() {
        let output = Program::find("cat")
            .unwrap()
            .arg("-")
            .input("a $HOME 'b'")
            .run()
            .unwrap();
        assert_eq!(output.text(), "a $HOME 'b'");
    }

    #[test]
    fn a_failure_carries_the_last_words() {
        let error = Program::find("ls")
            .unwrap()
            .arg("/no/such")
            .run()
            .unwrap_err();
        let shown = error.to_string();
        assert!(shown.starts_with("ls failed (exit status: 2): "), "{shown}");
        assert!(shown.contains("/no/such"), "{shown}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::find("no-such-program").unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed");
        let error = Program::at(Path::new("/no/such-program"))
            .run()
            .unwrap_err();
        assert_eq!(error.to_string(), "such-program is not installed");
    }

    #[test]
    fn an_undisturbed_program_is_a_group_of_its_own_and_has_no_pipe_to_break() {
        let script = "cut -d ' ' -f 5 /proc/$$/stat; echo $$; readlink /proc/$$/fd/1 /proc/$$/fd/2";
        let output = Program::find("sh")
            .unwrap()
            .args(["-c", script])
            .run_undisturbed()
            .unwrap();
        let text = output.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], lines[1], "its group is its own number");
        assert!(
            lines[2].contains("memfd:stdout") && lines[3].contains("memfd:stderr"),
            "{text}"
        );
        let failed = Program::find("ls")
            .unwrap()
            .arg("/no/such")
            .run_undisturbed()
            .unwrap_err();
        assert!(failed.to_string().contains("/no/such"), "{failed}");
    }

    #[test]
    fn a_slow_program_is_killed() {
        let limit = Duration::from_millis(50);
        let error = Program::find("sleep")
            .unwrap()
            .arg("60")
            .time_limit(limit)
            .run()
            .unwrap_err();
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
    }

    fn shell(script: &str) -> Program {
        Program::find("sh").unwrap().args(["-c", script])
    }

    #[test]
    fn a_transcript_has_all_that_was_said_in_order_whatever_the_status() {
        let script = "for n in $(seq 40); do echo $n; echo oops $n >&2; done; exit 4";
        let transcript = shell(script).transcribe().unwrap();
        assert_eq!(transcript.status.code(), Some(4));
        let lines: Vec<_> = transcript.text.lines().collect();
        assert_eq!(lines.len(), 80);
        assert_eq!(lines[..4], ["1", "oops 1", "2", "oops 2"]);
    }

    #[test]
    fn a_confined_program_says_how_it_ended_whatever_that_is() {
        let script = "cat; echo oops >&2; exit 3";
        let ended = shell(script).input("hello").run_confined(99).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stdout, b"hello");
        assert_eq!(ended.stderr, "oops");
        let large = vec![b'x'; 3 << 20];
        let ended = shell("cat").input(large.clone()).run_confined(4 << 20);
        assert!(ended.unwrap().stdout == large);
        let ended = shell("exec 0<&-").input(large).run_confined(99).unwrap();
        assert!(ended.status.success());
    }

    #[test]
    fn a_confined_program_that_prints_without_end_is_killed() {
        let error = shell("yes").run_confined(1000).unwrap_err();
        assert_eq!(error.to_string(), "sh printed more than 1000 bytes");
        let limit = Duration::from_millis(200);
        let error = shell("yes >&2").time_limit(limit).run_confined(9);
        assert!(
            matches!(error, Err(ProgramError::TimedOut { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn a_confined_program_is_killed_with_its_children() {
        let home = tempfile::tempdir().unwrap();
        let lock = home.path().join("lock");
        let held = crate::lock::Lock::acquire(&lock, "test", Duration::ZERO).unwrap();
        let error = shell("sleep 600 & sleep 600")
            .inherit(&held)
            .unwrap()
            .time_limit(Duration::from_millis(100))
            .run_confined(99)
            .unwrap_err();
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
        drop(held);
        // Both had it open: it is free when both are gone.
        drop(crate::lock::Lock::acquire(&lock, "test", Duration::from_secs(10)).unwrap());
    }

    #[test]
    fn what_a_confined_program_leaves_running_is_not_waited_for() {
        let ended = shell("echo done; sleep 600 & echo $!")
            .run_confined(99)
            .unwrap();
        let text = String::from_utf8(ended.stdout).unwrap();
        let (said, left) = text.trim().split_once('\n').unwrap();
        assert_eq!(said, "done");
        let left = crate::process::ProcessIdentity::of(left.parse().unwrap());
        left.unwrap()
            .unwrap()
            .end(crate::process::Ending::Kill)
            .unwrap();
    }

    #[test]
    fn a_bare_environment_holds_what_was_given_alone() {
        let ended = Program::find("env")
            .unwrap()
            .bare_environment()
            .env("GIVEN", "1")
            .run_confined(999)
            .unwrap();
        let mut lines: Vec<_> = std::str::from_utf8(&ended.stdout)
            .unwrap()
            .lines()
            .collect();
        lines.sort_unstable();
        let path = format!("PATH={}", SYSTEM_PATH.join(":"));
        assert_eq!(lines, ["GIVEN=1", "LC_ALL=C", &path]);
    }

    #[test]
    fn a_group_is_killed_with_its_children() {
        let (reader, writer) = io::pipe().unwrap();
        let mut group = Program::find("sh")
            .unwrap()
            .args(["-c", "sleep 60 & echo started; wait"])
            .own_group()
            .spawn_logged(OwnedFd::from(writer).into())
            .unwrap();
        let mut lines = BufReader::new(reader).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "started");
        group.kill_group();
        // The child has the other end of the pipe open for as long as it lives.
        assert!(lines.next().is_none());
    }

    #[test]
    fn progress_lines_arrive_one_by_one() {
        let mut lines = Vec::new();
        let script = "printf '1%%\\r2%%\\rdone\\n' >&2";
        let program = Program::find("sh").unwrap().args(["-c", script]);
        program
            .run_watched(&mut |line| lines.push(line.to_owned()))
            .unwrap();
        assert_eq!(lines, ["1%", "2%", "done"]);
    }

    #[test]
    fn system_programs_are_found_without_their_directory_on_path() {
        assert!(locate("mkfs.ext4").is_some_and(|path| path.is_absolute()));
    }
}
