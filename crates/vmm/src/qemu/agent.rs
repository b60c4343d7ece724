//! The guest agent's protocol, as qemu-ga(8) speaks it (docs/interop/qemu-ga-ref in QEMU's manual).
//!
//! Requests and replies are JSON objects, one a line, on the port `org.qemu.guest_agent.0`. There
//! is no greeting, and a reply does not say to which request it belongs: what an earlier client
//! was not there to hear may still come. So a client begins with `guest-sync-delimited` and a
//! number of its own, whose reply follows a byte that no reply contains, and skips what comes
//! before that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sistemo_host::lock::Lock;

use super::qmp::is_timeout;
use crate::VmmError;
use crate::contract::GuestAgent;

/// How long an agent that listens has to say that it does.
const SYNC_LIMIT: Duration = Duration::from_secs(3);
/// How long the guest has to write to its disks what is not there yet.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const THAW_LIMIT: Duration = Duration::from_secs(10);
const SYNC: &str = "guest-sync-delimited";
/// What the reply to that follows; not in UTF-8.
const DELIMITER: u8 = 0xff;
const LONGEST_REPLY: usize = 64 << 10;

/// A client of the agent.
#[derive(Debug)]
pub(super) struct Agent {
    stream: UnixStream,
    socket: PathBuf,
    received: Vec<u8>,
    /// What the last `guest-sync-delimited` gave, to know its reply by.
    number: u32,
    /// Whether a reply may still come that nobody waits for any more.
    late: bool,
    /// Held for as long as the socket is ours.
    _turn: Option<Lock>,
}

impl Agent {
    /// Begins a conversation; `number` is unlike that of the client before.
    pub(super) fn open(
        stream: UnixStream,
        socket: &Path,
        number: u32,
        turn: Option<Lock>,
    ) -> Result<Agent, VmmError> {
        let mut agent = Agent {
            stream,
            socket: socket.to_owned(),
            received: Vec::new(),
            number,
            late: true,
            _turn: turn,
        };
        agent.ask_for_sync(SYNC_LIMIT)?;
        agent.skip_to_sync(SYNC_LIMIT, Instant::now() + SYNC_LIMIT)?;
        agent.late = false;
        Ok(agent)
    }

    /// Asks for the reply that [`Agent::skip_to_sync`] skips to.
    fn ask_for_sync(&mut self, limit: Duration) -> Result<(), VmmError> {
        self.number = self.number.wrapping_add(1);
        self.send(SYNC, json!({ "id": self.number }), limit)
    }

    /// Skips the replies to whatever was asked before that was asked for.
    fn skip_to_sync(&mut self, limit: Duration, deadline: Instant) -> Result<(), VmmError> {
        loop {
            let line = self.line(SYNC, limit, deadline)?;
            let Some(start) = line.iter().rposition(|byte| *byte == DELIMITER) else {
                continue;
            };
            let reply: Value = serde_json::from_slice(&line[start + 1..]).unwrap_or_default();
            if reply["return"] == self.number {
                return Ok(());
            }
        }
    }

    fn execute(&mut self, command: &'static str, limit: Duration) -> Result<Value, VmmError> {
        let deadline = Instant::now() + limit;
        let late = std::mem::replace(&mut self.late, true);
        if late {
            // The reply to a freeze that was given up on must not pass for that to the thaw.
            self.ask_for_sync(limit)?;
        }
        // Before the other is answered: the agent gets to it whoever waits then.
        self.send(command, json!({}), limit)?;
        if late {
            self.skip_to_sync(limit, deadline)?;
        }
        let line = self.line(command, limit, deadline)?;
        let reply: Value =
            serde_json::from_slice(&line).map_err(|error| self.talk(error.into()))?;
        self.late = false;
        if let Some(message) = reply["error"]["desc"].as_str() {
            let message = message.to_owned();
            return Err(VmmError::AgentRefused { command, message });
        }
        match reply.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(self.talk(io::Error::new(
                io::ErrorKind::InvalidData,
                "a reply that is none",
            ))),
        }
    }

    /// Gives a command whose reply is a number of filesystems.
    fn count(&mut self, command: &'static str, limit: Duration) -> Result<u64, VmmError> {
        let reply = self.execute(command, limit)?;
        reply.as_u64().ok_or_else(|| {
            let what = format!("{reply} is no number of filesystems");
            self.talk(io::Error::new(io::ErrorKind::InvalidData, what))
        })
    }

    fn send(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<(), VmmError> {
        let mut request = json!({ "execute": command });
        if arguments != json!({}) {
            request["arguments"] = arguments;
        }
        let line = format!("{request}\n");
        self.stream
            .set_write_timeout(Some(limit))
            .and_then(|()| self.stream.write_all(line.as_bytes()))
            .map_err(|error| self.broken(command, limit, error))
    }

    /// The next line, without its end.
    fn line(
        &mut self,
        command: &'static str,
        limit: Duration,
        deadline: Instant,
    ) -> Result<Vec<u8>, VmmError> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.received.len() > LONGEST_REPLY {
                let endless = io::Error::new(io::ErrorKind::InvalidData, "a reply without end");
                return Err(self.talk(endless));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VmmError::AgentSilent { command, limit });
            }
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| self.stream.read(&mut buffer));
            match read {
                Ok(0) => return Err(self.talk(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(command, limit, error)),
            }
        }
    }

    fn broken(&self, command: &'static str, limit: Duration, error: io::Error) -> VmmError {
        if is_timeout(&error) {
            VmmError::AgentSilent { command, limit }
        } else {
            self.talk(error)
        }
    }

    fn talk(&self, source: io::Error) -> VmmError {
        VmmError::AgentTalk {
            socket: self.socket.clone(),
            source,
        }
    }
}

impl GuestAgent for Agent {
    fn freeze(&mut self) -> Result<u64, VmmError> {
        self.count("guest-fsfreeze-freeze", FREEZE_LIMIT)
    }

    fn thaw(&mut self) -> Result<u64, VmmError> {
        self.count("guest-fsfreeze-thaw", THAW_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread;

    use super::*;

    /// An agent as strict as qemu-ga: it takes one request after the other, freezes nothing twice,
    /// and does nothing but thaw and answer what is harmless while it is frozen. It begins with
    /// `stale`, which the client before has not read.
    fn agent(stale: &'static [u8]) -> UnixStream {
        let (near, mut far) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            far.write_all(stale).unwrap();
            let mut frozen = false;
            for line in BufReader::new(far.try_clone().unwrap()).lines() {
                let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let error = |text| json!({ "error": { "class": "GenericError", "desc": text } });
                let (delimiter, reply) = match request["execute"].as_str().unwrap() {
                    "guest-sync-delimited" => {
                        let number = request["arguments"]["id"].as_i64().unwrap();
                        (&[DELIMITER][..], json!({ "return": number }))
                    }
                    "guest-fsfreeze-freeze" if frozen => (&[][..], error("it is frozen")),
                    "guest-fsfreeze-freeze" => {
                        frozen = true;
                        (&[][..], json!({ "return": 2 }))
                    }
                    "guest-fsfreeze-thaw" => {
                        let thawed = if frozen { 2 } else { 0 };
                        frozen = false;
                        (&[][..], json!({ "return": thawed }))
                    }
                    _ => (&[][..], error("not found")),
                };
                far.write_all(delimiter).unwrap();
                far.write_all(format!("{reply}\n").as_bytes()).unwrap();
            }
        });
        near
    }

    fn opened(stale: &'static [u8]) -> Result<Agent, VmmError> {
        Agent::open(agent(stale), Path::new("agent.sock"), 4711, None)
    }

    fn unsynchronized(stream: UnixStream) -> Agent {
        Agent {
            stream,
            socket: "s".into(),
            received: Vec::new(),
            number: 1,
            late: false,
            _turn: None,
        }
    }

    #[test]
    fn filesystems_are_frozen_and_thawed() {
        let mut agent = opened(b"").unwrap();
        assert_eq!(agent.thaw().unwrap(), 0, "thawing what is not frozen");
        assert_eq!(agent.freeze().unwrap(), 2);
        let error = agent.freeze().unwrap_err();
        let text = "the guest agent refused `guest-fsfreeze-freeze`: it is frozen";
        assert_eq!(error.to_string(), text);
        assert_eq!(agent.thaw().unwrap(), 2);
    }

    #[test]
    fn what_an_earlier_client_did_not_hear_is_skipped() {
        for stale in [
            &b"{\"return\": 7}\n"[..],
            b"{\"return\": 2",
            b"\xff{\"return\": 1234}\n{\"return\": 1}\n",
            b"\xff\xff\n",
        ] {
            assert_eq!(opened(stale).unwrap().freeze().unwrap(), 2);
        }
    }

    #[test]
    fn a_late_reply_to_a_freeze_is_not_taken_for_that_to_the_thaw() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let guest = thread::spawn(move || {
            let mut lines = BufReader::new(far.try_clone().unwrap()).lines();
            let mut asked = |command: &str| -> Value {
                let request: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
                assert_eq!(request["execute"], command);
                request["arguments"]["id"].clone()
            };
            let mut say = |reply: &[u8]| far.write_all(reply).unwrap();
            asked("guest-fsfreeze-freeze");
            // It freezes for so long that thawing is asked for meanwhile.
            let number = asked(SYNC);
            asked("guest-fsfreeze-thaw");
            say(b"{\"return\": 2}\n");
            say(&[DELIMITER]);
            say(format!("{{\"return\": {number}}}\n").as_bytes());
            say(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"it stays frozen\"}}\n");
        });
        let mut agent = unsynchronized(near);
        let error = agent
            .execute("guest-fsfreeze-freeze", Duration::from_millis(20))
            .unwrap_err();
        assert!(matches!(error, VmmError::AgentSilent { .. }), "{error}");
        let error = agent.thaw().unwrap_err();
        let text = "the guest agent refused `guest-fsfreeze-thaw`: it stays frozen";
        assert_eq!(error.to_string(), text);
        guest.join().unwrap();
    }

    #[test]
    fn one_that_listens_and_does_not_answer_costs_little_time() {
        let (near, _far) = UnixStream::pair().unwrap();
        let started = Instant::now();
        let error = Agent::open(near, Path::new("s"), 1, None).unwrap_err();
        let text = "the guest agent did not answer `guest-sync-delimited` within 3 s";
        assert_eq!(error.to_string(), text);
        assert!(started.elapsed() < 2 * SYNC_LIMIT);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        for said in ["no JSON\n", "{}\n", "{\"return\": \"two\"}\n", "\n"] {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(said.as_bytes()).unwrap();
            let error = unsynchronized(near).freeze().unwrap_err();
            assert!(
                matches!(error, VmmError::AgentTalk { .. }),
                "{said}: {error}"
            );
        }
    }

    #[test]
    fn a_guest_that_goes_away_is_told() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let error = Agent::open(near, Path::new("s"), 1, None).unwrap_err();
        assert!(matches!(error, VmmError::AgentTalk { .. }), "{error}");
    }
}
