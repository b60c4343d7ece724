//! A home of its own for each test, and commands that know nothing of ours.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use sistemo_testkit::{Requirement, met};
use tempfile::TempDir;

/// The binary under test.
pub(crate) fn binary() -> &'static Path {
    assert_cmd::cargo::cargo_bin!("sistemo")
}

/// What a command did.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its standard output as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.stdout, self.stderr))
    }

    /// The error object on its standard error, which is its last line.
    pub(crate) fn error(&self) -> serde_json::Value {
        let line = self.stderr.lines().last().unwrap_or_default();
        let report: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", self.stderr));
        report["error"].clone()
    }
}

/// A home directory and nothing else.
pub(crate) struct Environment {
    home: TempDir,
}

impl Environment {
    pub(crate) fn new() -> Environment {
        Environment {
            home: TempDir::new().unwrap(),
        }
    }

    /// An environment with a machine `db1` that was never started, from a file of 16 MB.
    pub(crate) fn with_machine() -> Environment {
        let environment = Environment::new();
        environment.disk("disk.raw", 16);
        environment.ok("machine deploy ./disk.raw --name db1 --storage 64M --no-start");
        environment
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home().join(".sistemo")
    }

    /// Makes a file of `mib` MiB of zeros in the home directory.
    pub(crate) fn disk(&self, name: &str, mib: u64) {
        File::create(self.home().join(name))
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
    }

    /// Writes a file in the home directory.
    pub(crate) fn file(&self, name: &str, content: &str) {
        let mut file = File::create(self.home().join(name)).unwrap();
        file.write_all(content.as_bytes()).unwrap();
    }

    /// A command in the home directory with nothing in its environment but HOME and PATH.
    pub(crate) fn program(&self, path: impl AsRef<Path>) -> Command {
        let mut command = Command::new(path.as_ref());
        command.env_clear().current_dir(self.home());
        command
            .env("HOME", self.home())
            .env("TERM", "xterm")
            .env("PATH", std::env::var_os("PATH").unwrap());
        command
    }

    pub(crate) fn sistemo(&self) -> Command {
        self.program(binary())
    }

    /// Runs `sistemo` with the words of a line; a word may stand in single quotes.
    pub(crate) fn run(&self, line: &str) -> Ran {
        let mut command = self.sistemo();
        command.args(shlex::split(line).unwrap());
        ran(&mut command)
    }

    /// Runs `sistemo`, which must succeed.
    pub(crate) fn ok(&self, line: &str) -> Ran {
        let ran = self.run(line);
        assert_eq!(ran.status, 0, "sistemo {line}: {}", ran.stderr);
        ran
    }

    /// Runs `sistemo`, which must refuse with this status, naming `named`; returns its words.
    pub(crate) fn refused(&self, status: i32, line: &str, named: &str) -> String {
        let ran = self.run(line);
        assert_eq!(
            ran.status, status,
            "sistemo {line}: {}{}",
            ran.stdout, ran.stderr
        );
        assert!(ran.stdout.is_empty(), "sistemo {line}: {}", ran.stdout);
        assert!(
            ran.stderr.contains(named),
            "sistemo {line}: no `{named}` in {}",
            ran.stderr
        );
        assert_eq!(ran.stderr.matches("Error: ").count(), 1, "{}", ran.stderr);
        ran.stderr
    }

    /// Runs several lines and writes down everything they did.
    pub(crate) fn scene(&self, lines: &[&str]) -> String {
        let mut scene = String::new();
        for line in lines {
            let ran = self.run(line);
            write!(scene, "$ sistemo {line}\n[{}]\n{}", ran.status, ran.stdout).unwrap();
            for told in ran.stderr.lines() {
                writeln!(scene, "! {told}").unwrap();
            }
            scene.push('\n');
        }
        scene
    }

    /// The IDs, names and sizes of all volumes: what a refused command must not have changed.
    pub(crate) fn volumes(&self) -> Vec<(String, u64)> {
        let listed = self.ok("volume list -o json").json();
        let volume = |volume: &serde_json::Value| {
            (
                volume["name"].as_str().unwrap().to_owned(),
                volume["size_bytes"].as_u64().unwrap(),
            )
        };
        listed.as_array().unwrap().iter().map(volume).collect()
    }

    /// The names of all machines.
    pub(crate) fn machines(&self) -> Vec<String> {
        let listed = self.ok("machine list -o json").json();
        let name = |machine: &serde_json::Value| machine["name"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(name).collect()
    }

    /// The files of volumes, whatever the catalogue says.
    pub(crate) fn volume_files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.data_dir().join("volumes")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != ".sistemo-pool");
        names.sort();
        names
    }

    /// How many of them hold a volume's content.
    pub(crate) fn disks(&self) -> usize {
        let files = self.volume_files();
        let extension = |name: &String| Path::new(name).extension().map(ToOwned::to_owned);
        let kinds = files.iter().filter_map(extension);
        kinds.filter(|kind| kind == "ext4" || kind == "raw").count()
    }

    /// Compares a text with the snapshot of that name; what differs from run to run is
    /// replaced.
    pub(crate) fn assert_snapshot(&self, name: &str, text: &str) {
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.add_filter(
            r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            "00000000-0000-0000-0000-000000000000",
        );
        settings.add_filter(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]");
        settings.add_filter(&self.home().display().to_string(), "[HOME]");
        settings.add_filter(r"127\.0\.0\.1:\d{5}\b", "127.0.0.1:20000");
        settings.add_filter(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "[MAC]");
        settings.add_filter(r"to [\d.]+ GB that", "to [HOST MEMORY] that");
        settings.add_filter(r"(Used on disk: +)[\d.]+ [KM]B", "$1[USED]");
        settings.add_filter(r", [\d.]+ [KM]?B alone\)", ", [USED] alone)");
        settings.bind(|| insta::assert_snapshot!(name, text));
    }
}

/// Runs a command to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A copy of the binary, and a home, that an ordinary user can get at.
pub(crate) struct Ordinary {
    place: TempDir,
}

impl Ordinary {
    /// The user `nobody`.
    const UID: u32 = 65534;

    /// `None` where we cannot become another user.
    pub(crate) fn new() -> Option<Ordinary> {
        if !met(&[Requirement::Root, Requirement::Program("setpriv")]) {
            return None;
        }
        let place = TempDir::new().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // By another process: one that a test beside this one starts would inherit ours, open to
        // be written, and a file that is open so cannot be run.
        Command::new("/usr/bin/cp")
            .arg(binary())
            .arg(place.path().join("sistemo"))
            .assert()
            .success();
        fs::create_dir(place.path().join("home")).unwrap();
        let ordinary = Ordinary { place };
        std::os::unix::fs::chown(ordinary.home(), Some(Self::UID), Some(Self::UID)).unwrap();
        Some(ordinary)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.place.path().join("home")
    }

    /// Runs `sistemo` as the user.
    pub(crate) fn run(&self, line: &str) -> Ran {
        let uid = Self::UID.to_string();
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .env_clear()
            .env("HOME", self.home())
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.home())
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups"])
            .arg(self.place.path().join("sistemo"))
            .args(shlex::split(line).unwrap());
        ran(&mut command)
    }
}
