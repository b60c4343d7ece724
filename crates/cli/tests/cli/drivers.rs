//! `sistemo driver …`

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt as _;

use crate::environment::Environment;

#[test]
fn the_file_driver_keeps_every_law() {
    let environment = Environment::new();
    let disk = environment.home().join("disk");
    let checked = environment.ok(&format!(
        "driver check xen -O dir_path={} --seed 1 -o json",
        disk.display()
    ));
    let json = checked.json();
    assert_eq!(json["driver"], "file");
    assert_eq!(json["seed"], 1);
    assert_eq!(json["failed"], 0);
    assert_eq!(json["interrupted"], false);
    assert_eq!(json["remains"], serde_json::json!([]));
    let laws = json["laws"].as_array().unwrap();
    let counted = ["passed", "not_claimed", "skipped"].map(|word| json[word].as_u64().unwrap());
    assert_eq!(counted.iter().sum::<u64>(), laws.len() as u64);
    let killed = laws.iter().find(|law| {
        law["law"] == "whenever_it_is_killed_what_returned_is_there_and_the_rest_recovers"
    });
    assert_eq!(killed.unwrap()["outcome"], "passed");
    // Neither the directory that was made for it stays, nor was a catalogue or pool made.
    assert!(!disk.exists());
    assert!(!environment.data_dir().join("sistemo.db").exists());
    assert!(
        checked.stderr.contains("/disk/.sistemo-check-"),
        "{}",
        checked.stderr
    );
}

#[test]
fn a_check_leaves_the_pools_of_its_directory_alone() {
    let environment = Environment::new();
    environment.ok("volume create 16M --name data --fs none");
    let before = files(&environment);
    let volumes = environment.data_dir().join("volumes");
    let checked = interrupted(
        &environment,
        &["-O", &format!("dir_path={}", volumes.display())],
    );
    // Cut short after a few laws, which are enough to see where it works.
    assert!(checked.contains("passed       an_empty_pool"), "{checked}");
    assert!(checked.contains("; interrupted"), "{checked}");
    assert_eq!(files(&environment), before);
}

#[test]
fn without_a_directory_it_works_within_the_data_directory() {
    let environment = Environment::new();
    let checked = interrupted(&environment, &[]);
    assert!(checked.contains("; interrupted"), "{checked}");
    assert!(!environment.data_dir().exists());
}

/// Runs a check of the file driver and interrupts it at its first law.
fn interrupted(environment: &Environment, options: &[&str]) -> String {
    let output = environment.home().join("output");
    let mut command = std::process::Command::cargo_bin("sistemo").unwrap();
    let mut child = command
        .env_clear()
        .env("HOME", environment.home())
        .env("PATH", std::env::var_os("PATH").unwrap())
        .args(["driver", "check", "file"])
        .args(options)
        .stdout(fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&output).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it tells nothing");
        thread::sleep(Duration::from_millis(5));
    }
    let mut kill = environment.program("kill");
    kill.args(["-INT", &child.id().to_string()])
        .assert()
        .success();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    fs::read_to_string(output).unwrap()
}

/// All files of the data directory, save those that every command may change.
fn files(environment: &Environment) -> Vec<String> {
    let mut names = Vec::new();
    for directory in ["", "volumes"] {
        let entries = fs::read_dir(environment.data_dir().join(directory)).unwrap();
        names.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    names.retain(|name| !name.contains("sistemo.db"));
    names.sort();
    names
}

#[test]
fn mistakes_in_a_check_say_what_to_do() {
    let environment = Environment::new();
    for (line, status, told, hint) in [
        (
            "driver check zfs",
            1,
            "Error: driver zfs does not exist",
            "sistemo pool drivers",
        ),
        (
            "driver check ./no/such",
            1,
            "Error: driver ./no/such cannot be used",
            "driver-protocol.md",
        ),
        (
            "driver check file -O colour=red",
            1,
            "Error: driver file cannot be checked with these options",
            "sistemo pool drivers",
        ),
        (
            "driver check file -O dir_path=/no/such/place",
            1,
            "/no/such/place",
            "",
        ),
        (
            "driver check file -O dir_path=/a -O dir_path=/b",
            2,
            "`dir_path` is set more than once",
            "sistemo driver check --help",
        ),
    ] {
        let ran = environment.run(line);
        assert_eq!(ran.status, status, "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(told), "{line}: {}", ran.stderr);
        assert!(ran.stderr.contains(hint), "{line}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{line}");
    }
}
