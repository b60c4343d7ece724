//! `sistemo machine console`

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use sistemo::model::Reference;

use crate::failure::Failure;
use crate::output::tell;
use crate::session::Session;
use crate::terminal::{RawTerminal, Termination};

/// Ctrl-], which leaves the console, as in telnet(1) and virsh.
const ESCAPE: u8 = 0x1d;
const CHUNK: usize = 4096;

/// Connects our terminal, or whatever our standard input and output are, to the console.
pub(super) fn run(machine: &Reference, session: &Session) -> Result<(), Failure> {
    let stream = session.engine()?.console(machine)?;
    let interactive = io::stdin().is_terminal();
    let termination = Termination::watch()?;
    let raw = if interactive {
        session
            .output
            .note(&format!("console of {machine}; Ctrl-] leaves it"));
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let stdin = io::stdin();
    let ended = converse(
        &stream,
        termination.as_fd(),
        User {
            input: stdin.as_fd(),
            output: &mut io::stdout().lock(),
            interactive,
        },
    );
    drop(raw);
    match ended {
        Ok(Ended::ByUser) => {
            if interactive {
                // The guest's cursor may stand anywhere on the line.
                session.output.note("");
            }
            Ok(())
        }
        Ok(Ended::ByMachine) => {
            if !session.output.is_quiet() {
                tell(&format!("\nthe console of {machine} was closed"));
            }
            Ok(())
        }
        Err(Broken::Output(error)) => Err(Failure::Output(error)),
        Err(Broken::Console(source)) => Err(Failure::Console {
            machine: machine.to_string(),
            source,
        }),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ByUser,
    ByMachine,
}

#[derive(Debug)]
enum Broken {
    Output(io::Error),
    Console(io::Error),
}

/// Our side of the conversation.
struct User<'a> {
    /// What they type. Read as it is, since poll(2) knows nothing of a buffer on top of it.
    input: BorrowedFd<'a>,
    /// What they see.
    output: &'a mut dyn Write,
    /// Whether they sit at a terminal: the escape key then ends the conversation.
    interactive: bool,
}

/// Passes bytes both ways until one side ends or we are terminated. An input that is no
/// terminal may end before the machine does: what the machine writes is then still shown.
fn converse(
    mut stream: &UnixStream,
    termination: BorrowedFd<'_>,
    user: User<'_>,
) -> Result<Ended, Broken> {
    let User {
        input,
        output,
        interactive,
    } = user;
    let mut input_open = true;
    let mut buffer = [0; CHUNK];
    loop {
        let (from_user, from_machine, terminated) = {
            let mut watched = vec![
                PollFd::new(&stream, PollFlags::IN),
                PollFd::from_borrowed_fd(termination, PollFlags::IN),
            ];
            if input_open {
                watched.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
            }
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Broken::Console(error.into())),
            }
            let ready = |index: usize| {
                watched
                    .get(index)
                    .is_some_and(|watched| !watched.revents().is_empty())
            };
            (ready(2), ready(0), ready(1))
        };
        if terminated {
            return Ok(Ended::ByUser);
        }
        if from_machine {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(Ended::ByMachine),
                Err(error) if is_hangup(&error) => return Ok(Ended::ByMachine),
                Err(error) => return Err(Broken::Console(error)),
                Ok(length) => output
                    .write_all(&buffer[..length])
                    .and_then(|()| output.flush())
                    .map_err(Broken::Output)?,
            }
        }
        if from_user {
            let length = rustix::io::read(input, &mut buffer)
                .map_err(|error| Broken::Console(error.into()))?;
            let typed = &buffer[..length];
            let escape = typed.iter().position(|byte| interactive && *byte == ESCAPE);
            match stream.write_all(&typed[..escape.unwrap_or(length)]) {
                Err(error) if is_hangup(&error) => return Ok(Ended::ByMachine),
                written => written.map_err(Broken::Console)?,
            }
            if escape.is_some() || (length == 0 && interactive) {
                return Ok(Ended::ByUser);
            }
            input_open = length > 0;
        }
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Both ends of everything that a conversation connects.
    struct Scene {
        machine: UnixStream,
        ours: UnixStream,
        keyboard: UnixStream,
        typed: UnixStream,
        signal: UnixStream,
        termination: UnixStream,
    }

    fn scene() -> Scene {
        let (machine, ours) = UnixStream::pair().unwrap();
        let (keyboard, typed) = UnixStream::pair().unwrap();
        let (signal, termination) = UnixStream::pair().unwrap();
        Scene {
            machine,
            ours,
            keyboard,
            typed,
            signal,
            termination,
        }
    }

    fn play(scene: &Scene, interactive: bool) -> (Result<Ended, Broken>, String) {
        let mut seen = Vec::new();
        let user = User {
            input: scene.typed.as_fd(),
            output: &mut seen,
            interactive,
        };
        let ended = converse(&scene.ours, scene.termination.as_fd(), user);
        (ended, String::from_utf8(seen).unwrap())
    }

    #[test]
    fn the_escape_key_leaves_and_is_not_passed_on() {
        let mut scene = scene();
        scene.keyboard.write_all(b"ls\n\x1dmore").unwrap();
        assert_eq!(play(&scene, true).0.unwrap(), Ended::ByUser);
        drop(scene.ours);
        let mut received = String::new();
        scene.machine.read_to_string(&mut received).unwrap();
        assert_eq!(received, "ls\n");
    }

    #[test]
    fn without_a_terminal_every_byte_is_passed_on_and_the_end_of_input_is_not_the_end() {
        let mut scene = scene();
        scene.keyboard.write_all(b"a\x1db").unwrap();
        scene.keyboard.shutdown(std::net::Shutdown::Write).unwrap();
        let mut machine = scene.machine.try_clone().unwrap();
        let guest = thread::spawn(move || {
            let mut received = [0; 3];
            machine.read_exact(&mut received).unwrap();
            machine.write_all(b"login: ").unwrap();
            machine.shutdown(std::net::Shutdown::Both).unwrap();
            received
        });
        let (ended, seen) = play(&scene, false);
        assert_eq!(ended.unwrap(), Ended::ByMachine);
        assert_eq!(seen, "login: ");
        assert_eq!(&guest.join().unwrap(), b"a\x1db");
    }

    #[test]
    fn a_signal_ends_the_conversation() {
        let mut scene = scene();
        scene.signal.write_all(&[0]).unwrap();
        assert_eq!(play(&scene, true).0.unwrap(), Ended::ByUser);
    }
}
