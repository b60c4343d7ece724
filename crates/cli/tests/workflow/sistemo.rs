//! The binary, driven as its users do.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary on a data directory of its own, which is taken down when the test ends or fails.
pub(crate) struct Sistemo {
    home: tempfile::TempDir,
}

impl Sistemo {
    pub(crate) fn new() -> Sistemo {
        Sistemo {
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// A directory whose name ssh, QEMU and a shell would all read as something else.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("da ta,é%h$HOME'")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
        command
            .args(arguments)
            .env("SISTEMO_DATA_DIR", self.data_dir());
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.output(&arguments);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "`sistemo {line}` failed:\n{stdout}{stderr}"
        );
        stdout
    }

    /// Runs a command that must be refused, and returns what it said.
    pub(crate) fn refused(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.output(&arguments);
        assert_eq!(
            output.status.code(),
            Some(1),
            "`sistemo {line}`: {}",
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(&format!("{line} -o json"))).unwrap()
    }

    /// Runs a line of shell in a machine; it must succeed.
    pub(crate) fn guest(&self, machine: &str, line: &str) -> String {
        let output = self.output(&["machine", "ssh", machine, "--", line]);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success(),
            "`{line}` failed in {machine}:\n{stdout}{stderr}"
        );
        stdout.trim().to_owned()
    }

    pub(crate) fn background(&self, line: &str) -> Child {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        self.command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn status(&self, machine: &str) -> Value {
        self.json(&format!("machine status {machine}"))
    }

    pub(crate) fn wait_for_status(&self, machine: &str, wanted: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let status = self.status(machine);
            if status["status"] == wanted {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{machine} is not {wanted}: {status}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn volume_files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.data_dir().join("volumes"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Sistemo {
    fn drop(&mut self) {
        let machines = self.output(&["machine", "list", "-o", "json"]);
        let machines: Vec<Value> = serde_json::from_slice(&machines.stdout).unwrap_or_default();
        for machine in machines {
            let name = machine["name"].as_str().unwrap_or_default();
            if thread::panicking() {
                let log = self.output(&["machine", "logs", name]);
                eprintln!("--- console of {name}:\n{}", text(&log.stdout));
            }
            let _ = self.output(&["machine", "stop", "--force", name]);
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
