//! Machines that run, though they find nothing to boot: enough for all that needs no guest.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::environment::{Environment, binary, ran};

/// What the firmware of a machine without a system ends with.
const LAST_WORDS: &str = "No bootable device.";
const PATIENCE: Duration = Duration::from_secs(60);

/// An environment with a running machine `db1` that holds the volume `pgdata`.
struct Running {
    environment: Environment,
}

impl Running {
    fn new() -> Running {
        let environment = Environment::new();
        environment.disk("disk.raw", 16);
        environment.ok("volume create 16M --name pgdata");
        let running = Running { environment };
        running.environment.ok(
            "machine deploy ./disk.raw --name db1 --storage 64M --memory 128M --attach pgdata --no-wait",
        );
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Also after a failed test, which says enough.
        let _ = self.environment.run("machine stop db1 --force");
    }
}

#[test]
fn a_running_machine_refuses_what_needs_a_stopped_one() {
    let running = Running::new();
    let environment = &running.environment;
    environment.ok("volume create 16M --name free");
    for line in [
        "machine volume attach db1 free",
        "machine volume detach db1 pgdata",
        "volume resize pgdata 32M",
        "volume resize pgdata 32M --grow-fs",
        "volume rename pgdata other",
        "machine rename db1 db2",
        "machine set db1 vcpus=1",
    ] {
        let told = environment.refused(1, line, "machine db1 is running");
        assert!(told.ends_with("Hint: sistemo machine stop db1\n"), "{told}");
    }
    environment.refused(
        1,
        "volume delete pgdata -y",
        "volume pgdata is attached to db1",
    );
    environment.refused(1, "machine delete db1", "no terminal to ask on");
    let machine = environment
        .ok("machine set db1 autostart=true -o json")
        .json();
    assert_eq!(machine["autostart"], true);
    assert_eq!(machine["status"], "running");
    assert_eq!(machine["volumes"].as_array().unwrap().len(), 2);
}

#[test]
fn starting_pausing_and_stopping_twice_is_no_error() {
    let running = Running::new();
    let environment = &running.environment;
    for (line, status, told) in [
        (
            "machine start db1 --no-wait",
            "running",
            "machine db1 is already running\n",
        ),
        ("machine pause db1", "paused", ""),
        (
            "machine pause db1",
            "paused",
            "machine db1 is already paused\n",
        ),
        ("machine resume db1", "running", ""),
        (
            "machine resume db1",
            "running",
            "machine db1 is already running\n",
        ),
        ("machine restart db1 --force --no-wait -q", "running", ""),
        ("machine stop db1 --force -q", "stopped", ""),
        (
            "machine stop db1",
            "stopped",
            "machine db1 is already stopped\n",
        ),
    ] {
        let ran = environment.ok(&format!("{line} -o json"));
        assert_eq!(ran.json()["status"], status, "{line}");
        assert_eq!(ran.stderr, told, "{line}");
    }
    let stopped = environment.ok("machine status db1 -o json").json();
    assert_eq!(stopped["stopped_how"], "forced");
}

#[test]
fn a_stop_whose_command_is_killed_leaves_the_machine_running() {
    let running = Running::new();
    let environment = &running.environment;
    let status = || environment.ok("machine status db1 -o json").json()["status"].clone();
    let mut stop = start(environment, &["machine", "stop", "db1", "--timeout", "600"]);
    let deadline = Instant::now() + PATIENCE;
    while status() != "stopping" {
        assert!(Instant::now() < deadline, "the stop never began");
    }
    let told = environment.refused(1, "machine start db1", "db1 is in use by process");
    assert!(told.contains("sistemo machine stop db1"), "{told}");
    stop.kill().unwrap();
    stop.wait().unwrap();
    assert_eq!(status(), "running");
    let stopped = environment.ok("machine stop db1 --force -o json").json();
    assert_eq!(stopped["stopped_how"], "forced");
}

#[test]
fn a_machine_does_not_start_on_a_volume_that_is_still_being_grown() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    environment.ok("volume create 32M --name pgdata");
    environment.ok("machine deploy ./disk.raw --name db1 --memory 128M --attach pgdata --no-start");
    let running = Running { environment };
    let environment = &running.environment;
    std::fs::create_dir(environment.home().join("bin")).unwrap();
    // A resize2fs that takes its time, and says when it is done.
    environment.file(
        "bin/resize2fs",
        "#!/bin/sh\n: > begun\nsleep 2\n/usr/sbin/resize2fs \"$@\" && : > done\n",
    );
    let script = environment.home().join("bin/resize2fs");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", environment.home().join("bin").display());
    let mut resize = start_with(
        environment,
        &["volume", "resize", "pgdata", "64M", "--grow-fs"],
        &[("PATH", &path)],
    );
    let deadline = Instant::now() + PATIENCE;
    while !environment.home().join("begun").exists() {
        assert!(Instant::now() < deadline, "the resize never began");
        std::thread::sleep(Duration::from_millis(10));
    }
    resize.kill().unwrap();
    resize.wait().unwrap();
    environment.ok("machine start db1 --no-wait");
    assert!(
        environment.home().join("done").exists(),
        "it did not wait for resize2fs"
    );
}

#[test]
fn a_running_machine_that_loses_nothing_is_deleted_without_a_question() {
    let running = Running::new();
    let environment = &running.environment;
    let mut command = environment.sistemo();
    command.args(["machine", "delete", "db1", "--preserve-storage"]);
    let ran = ran(command.env("SISTEMO_STOP_TIMEOUT", "1"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stderr
            .ends_with("deleted machine db1; kept db1-root, pgdata\n"),
        "{}",
        ran.stderr
    );
    let volumes = environment.ok("volume list -o json").json();
    for volume in volumes.as_array().unwrap() {
        assert_eq!(volume["status"], "available");
    }
    assert_eq!(environment.disks(), 2);
}

/// Reads until `end` has come `times` times.
fn read_until(stream: &mut impl Read, end: &str, times: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&seen);
        if text.matches(end).count() >= times {
            return text.into_owned();
        }
        assert!(Instant::now() < deadline, "{text}");
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "it ended after: {text}");
        seen.extend_from_slice(&buffer[..length]);
    }
}

#[test]
fn logs_are_followed_through_a_restart() {
    let running = Running::new();
    let environment = &running.environment;
    let mut follower = start(environment, &["machine", "logs", "db1", "-f"]);
    let mut log = follower.stdout.take().unwrap();
    read_until(&mut log, LAST_WORDS, 1);
    environment.ok("machine restart db1 --force --no-wait");
    read_until(&mut log, LAST_WORDS, 1);
    follower.kill().unwrap();
    follower.wait().unwrap();
    let log = environment.ok("machine logs db1").stdout;
    assert!(log.contains(LAST_WORDS), "{log}");
}

fn start(environment: &Environment, words: &[&str]) -> std::process::Child {
    start_with(environment, words, &[])
}

#[expect(
    clippy::disallowed_methods,
    reason = "assert_cmd cannot read a running program's output"
)]
fn start_with(
    environment: &Environment,
    words: &[&str],
    variables: &[(&str, &str)],
) -> std::process::Child {
    std::process::Command::new(binary())
        .env_clear()
        .env("HOME", environment.home())
        .envs(variables.iter().copied())
        .current_dir(environment.home())
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn the_console_is_left_with_ctrl_and_bracket() {
    let running = Running::new();
    let environment = &running.environment;
    // The terminal must be as before when the console is left.
    let script = format!(
        "stty -g; {} machine console db1; stty -g",
        binary().display()
    );
    let mut command = environment.program("script");
    command
        .args(["-qec", &script, "/dev/null"])
        .timeout(PATIENCE);
    let ran = ran(command.write_stdin("\x1d"));
    assert_eq!(ran.status, 0, "{}", ran.stdout);
    assert!(
        ran.stdout.contains("console of db1; Ctrl-] leaves it"),
        "{}",
        ran.stdout
    );
    let lines: Vec<&str> = ran.stdout.lines().map(str::trim).collect();
    // The terminal shows what was typed before anybody read it.
    let before = lines.first().unwrap().trim_start_matches("^]");
    assert_eq!(lines.last(), Some(&before), "{}", ran.stdout);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the command is to be killed on its way"
)]
fn a_killed_start_leaves_a_machine_from_a_template_that_starts() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    environment.ok("machine deploy ./disk.raw --name t --storage 64M --no-start");
    let root = environment.ok("volume show t-root -o json").json();
    let file = std::fs::File::options()
        .write(true)
        .open(root["path"].as_str().unwrap())
        .unwrap();
    // What takes a while to copy.
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 48 << 20], 0).unwrap();
    environment.ok("machine deploy --template t --name d --memory 128M --no-start");
    let files = environment.volume_files();
    for round in 0..10 {
        let mut start = std::process::Command::new(binary())
            .args(["machine", "start", "d", "--no-wait", "-q"])
            .env("HOME", environment.home())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 + round * 23));
        start.kill().unwrap();
        start.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let machine = environment.ok("machine status d -o json").json();
            match machine["status"].as_str().unwrap() {
                "running" => {
                    environment.ok("machine stop d --force -q");
                }
                "stopped" if environment.volume_files() == files => break,
                _ => {}
            }
            assert!(Instant::now() < deadline, "{machine}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    environment.ok("machine start d --no-wait -q");
    environment.ok("machine stop d --force -q");
    assert_eq!(environment.volume_files(), files);
}
