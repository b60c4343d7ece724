//! QEMU's machine protocol (docs/interop/qmp-spec.rst in QEMU's source).
//!
//! Messages are JSON objects, one a line. The server greets, the client negotiates, and from
//! then on each command has one reply that carries its `id`; events come at any time between.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::VmmError;

/// The longest message taken. The largest that we ask for, the disks of a machine, has about
/// 1 KB for each file that any of them consists of.
const LONGEST_MESSAGE: usize = 64 << 20;
/// The most events kept for later. A guest that resets itself in a loop makes them without end.
const MOST_EVENTS: usize = 1024;
const BUFFER: usize = 8 << 10;

/// A connection that has been negotiated.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    socket: PathBuf,
    received: Vec<u8>,
    /// How much of `received` holds no line end.
    searched: usize,
    events: VecDeque<Event>,
    last_id: u64,
}

/// An asynchronous message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// Its name: `STOP`, `SHUTDOWN`, …
    pub(super) name: String,
    /// What it carries; `Null` where it carries nothing.
    pub(super) data: Value,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    /// Not taken apart before it is known what is wanted of it: a disk of many files is a value
    /// in a value in a value, deeper than `serde_json` would follow.
    #[serde(rename = "return")]
    result: Option<Box<RawValue>>,
    error: Option<Fault>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Fault {
    desc: String,
}

impl Qmp {
    /// Waits for the greeting and negotiates. A socket serves one client at a time; one that
    /// waits for its turn gets no greeting.
    pub(super) fn open(
        stream: UnixStream,
        socket: &Path,
        limit: Duration,
    ) -> Result<Qmp, VmmError> {
        let mut qmp = Qmp {
            stream,
            socket: socket.to_owned(),
            received: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            last_id: 0,
        };
        let deadline = Instant::now() + limit;
        match qmp.receive(deadline)? {
            Some(message) if message.greeting.is_some() => {}
            Some(_) => return Err(qmp.garbled("something else came before the greeting")),
            None => return Err(qmp.silent("greeting", limit)),
        }
        qmp.execute("qmp_capabilities", None, limit)?;
        Ok(qmp)
    }

    /// The socket that it talks on.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Gives a command and waits for its reply; events that come meanwhile are kept.
    pub(super) fn execute(
        &mut self,
        command: &'static str,
        arguments: Option<&Value>,
        limit: Duration,
    ) -> Result<Box<RawValue>, VmmError> {
        self.last_id += 1;
        let id = self.last_id;
        let mut request = json!({ "execute": command, "id": id });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments.clone();
        }
        let mut line = request.to_string();
        line.push('\n');
        let deadline = Instant::now() + limit;
        self.stream
            .set_write_timeout(Some(limit))
            .and_then(|()| self.stream.write_all(line.as_bytes()))
            .map_err(|error| self.broken(command, limit, error))?;
        loop {
            let Some(message) = self.receive(deadline)? else {
                return Err(self.silent(command, limit));
            };
            // The late reply to a command that was given up on.
            if message.id.is_some_and(|replied| replied < id) {
                continue;
            }
            if let Some(fault) = message.error {
                let message = fault.desc;
                return Err(VmmError::Refused { command, message });
            }
            match message.result {
                Some(result) if message.id == Some(id) => return Ok(result),
                _ => return Err(self.garbled("a reply that belongs to no command")),
            }
        }
    }

    /// Waits for an event, those kept first; `None` where none came in time.
    pub(super) fn next_event(&mut self, limit: Duration) -> Result<Option<Event>, VmmError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.read_message(deadline)? {
                // A late reply to a command that was given up on is dropped.
                Some(message) => self.keep_event(message),
                None => return Ok(None),
            };
        }
    }

    /// The events of a name that came and were not asked for yet, which [`Qmp::next_event`] then
    /// does not give.
    pub(super) fn take_events(&mut self, name: &str) -> Vec<Event> {
        let events = std::mem::take(&mut self.events);
        let (taken, kept): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| event.name == name);
        self.events = kept.into();
        taken
    }

    /// The next message that is not an event; `None` where none came in time.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Message>, VmmError> {
        loop {
            match self.read_message(deadline)? {
                None => return Ok(None),
                Some(message) => {
                    if let Some(message) = self.keep_event(message) {
                        return Ok(Some(message));
                    }
                }
            }
        }
    }

    /// Keeps an event; gives anything else back.
    fn keep_event(&mut self, message: Message) -> Option<Message> {
        let Some(name) = message.event else {
            return Some(message);
        };
        if self.events.len() == MOST_EVENTS {
            tracing::warn!(socket = %self.socket.display(), "too many events, the oldest is lost");
            self.events.pop_front();
        }
        let data = message.data;
        self.events.push_back(Event { name, data });
        None
    }

    fn read_message(&mut self, deadline: Instant) -> Result<Option<Message>, VmmError> {
        loop {
            if let Some(end) = self.line_end() {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| self.garbled(error));
            }
            if self.received.len() > LONGEST_MESSAGE {
                return Err(self.garbled("a message without end"));
            }
            if !self.read_more(deadline)? {
                return Ok(None);
            }
        }
    }

    fn line_end(&mut self) -> Option<usize> {
        let unsearched = &self.received[self.searched..];
        let end = unsearched.iter().position(|byte| *byte == b'\n');
        let end = end.map(|end| end + self.searched);
        self.searched = self.received.len();
        end
    }

    /// Reads what there is; `false` where nothing came in time.
    fn read_more(&mut self, deadline: Instant) -> Result<bool, VmmError> {
        let mut buffer = [0; BUFFER];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would mean none at all.
            let left = left.max(Duration::from_millis(1));
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut buffer));
            match read {
                Ok(0) => return Err(self.closed()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Ok(false),
                Err(error) if is_end(&error) => return Err(self.closed()),
                Err(source) => return Err(self.talk(source)),
            }
        }
    }

    fn broken(&self, command: &'static str, limit: Duration, error: io::Error) -> VmmError {
        if is_timeout(&error) {
            self.silent(command, limit)
        } else if is_end(&error) {
            self.closed()
        } else {
            self.talk(error)
        }
    }

    fn closed(&self) -> VmmError {
        VmmError::Closed {
            socket: self.socket.clone(),
        }
    }

    fn silent(&self, command: &'static str, limit: Duration) -> VmmError {
        VmmError::Silent {
            socket: self.socket.clone(),
            command,
            limit,
        }
    }

    fn talk(&self, source: io::Error) -> VmmError {
        VmmError::Talk {
            socket: self.socket.clone(),
            source,
        }
    }

    /// What came is not what the protocol says.
    pub(super) fn garbled(
        &self,
        what: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> VmmError {
        self.talk(io::Error::new(ErrorKind::InvalidData, what))
    }
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(30);
    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

    /// A server that greets and then answers each command with the next of `answers`.
    fn served(answers: &'static [&'static str]) -> Qmp {
        let (near, far) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            let mut far = far;
            let greeting = format!("{GREETING}\r\n");
            // A message may arrive in pieces.
            for piece in greeting.as_bytes().chunks(7) {
                far.write_all(piece).unwrap();
            }
            lines.next().unwrap().unwrap();
            far.write_all(b"{\"return\": {}, \"id\": 1}\r\n").unwrap();
            for answer in answers {
                if lines.next().is_none() {
                    return;
                }
                far.write_all(answer.as_bytes()).unwrap();
            }
            // What is left open stays so until the client goes.
            lines.next();
        });
        Qmp::open(near, Path::new("control.sock"), LIMIT).unwrap()
    }

    #[test]
    fn events_between_command_and_reply_are_kept_in_order() {
        let mut qmp = served(&[
            "{\"event\": \"STOP\"}\r\n{\"event\": \"RESET\", \"data\": {\"guest\": true}}\r\n\
             {\"return\": {\"running\": true}, \"id\": 2}\r\n{\"event\": \"RESUME\"}\r\n",
        ]);
        let status = qmp.execute("query-status", None, LIMIT).unwrap();
        assert_eq!(status.get(), r#"{"running": true}"#);
        let mut next = || qmp.next_event(LIMIT).unwrap().unwrap();
        assert_eq!(next().name, "STOP");
        let reset = next();
        assert_eq!(
            (reset.name.as_str(), &reset.data["guest"]),
            ("RESET", &true.into())
        );
        assert_eq!(next().name, "RESUME");
        assert_eq!(qmp.next_event(SHORT).unwrap(), None);
    }

    #[test]
    fn a_refusal_carries_the_reason() {
        let mut qmp = served(&[
            "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n",
        ]);
        let error = qmp.execute("cont", None, LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "the VMM refused `cont`: not now");
    }

    #[test]
    fn a_late_reply_is_not_taken_for_the_next() {
        let mut qmp = served(&[
            "",
            "{\"return\": \"late\", \"id\": 2}\r\n{\"return\": \"right\", \"id\": 3}\r\n",
        ]);
        let error = qmp.execute("stop", None, SHORT).unwrap_err();
        assert!(
            matches!(
                error,
                VmmError::Silent {
                    command: "stop",
                    ..
                }
            ),
            "{error}"
        );
        let reply = qmp.execute("cont", None, LIMIT).unwrap();
        assert_eq!(reply.get(), r#""right""#);
    }

    #[test]
    fn a_closed_connection_is_the_vmm_gone() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let error = Qmp::open(near, Path::new("s"), LIMIT).unwrap_err();
        assert!(error.is_gone(), "{error}");
    }

    #[test]
    fn no_greeting_is_silence() {
        let (near, _far) = UnixStream::pair().unwrap();
        let error = Qmp::open(near, Path::new("s"), SHORT).unwrap_err();
        assert!(
            matches!(
                error,
                VmmError::Silent {
                    command: "greeting",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        for said in [
            "no JSON\n",
            "{\"QMP\": \n",
            "{\"return\": {}}\n",
            "[]\n",
            "\u{0}\n",
        ] {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(said.as_bytes()).unwrap();
            let error = Qmp::open(near, Path::new("s"), LIMIT).unwrap_err();
            assert!(matches!(error, VmmError::Talk { .. }), "{said}: {error}");
        }
    }

    #[test]
    fn a_message_without_end_is_cut_off() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            let piece = vec![b'a'; 1 << 20];
            while far.write_all(&piece).is_ok() {}
        });
        let error = Qmp::open(near, Path::new("s"), LIMIT).unwrap_err();
        assert!(matches!(error, VmmError::Talk { .. }), "{error}");
        writer.join().unwrap();
    }

    #[test]
    fn a_flood_of_events_keeps_the_newest() {
        let mut qmp = served(&[]);
        for number in 0..MOST_EVENTS + 5 {
            let line = format!("{{\"event\": \"RESET\", \"data\": {number}}}");
            qmp.keep_event(serde_json::from_str(&line).unwrap());
        }
        assert_eq!(qmp.events.len(), MOST_EVENTS);
        assert_eq!(qmp.next_event(SHORT).unwrap().unwrap().data, 5);
    }
}
