//! What holds for every command: help, formats, silence, and how it ends.

use std::collections::HashSet;
use std::fs::{self, File};

use crate::environment::{Environment, binary, ran};

#[test]
fn mistakes_on_the_command_line_end_with_2_and_say_what_to_type() {
    let environment = Environment::new();
    let scene = environment.scene(&[
        "frobnicate",
        "volume",
        "volume creat 1G",
        "volume create",
        "volume create 1G --nmae x",
        "volume create 1G --name --fs",
        "volume create 1G --fs zfs",
        "volume create 5X",
        "volume show ''",
        "machine stop db1 --force --timeout 5",
        "machine stop db1 --timeout 0",
        "volume create 5X -o json",
        "volume -o json",
        "volume list -o yaml",
    ]);
    environment.assert_snapshot("mistakes_on_the_command_line", &scene);
    assert!(!environment.data_dir().exists(), "nothing was opened");
}

#[test]
fn an_error_is_one_json_object_where_json_is_asked_for() {
    let environment = Environment::new();
    for line in [
        "volume show nope -o json",
        "-o json volume show nope",
        "volume -ojson show nope",
    ] {
        let ran = environment.run(line);
        assert_eq!(ran.status, 1);
        assert_eq!(ran.stdout, "");
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
        let expected = serde_json::json!({
            "code": "not-found",
            "message": "volume nope does not exist",
            "hint": "sistemo volume list",
        });
        assert_eq!(ran.error(), expected);
    }
}

#[test]
fn quiet_silences_notes_and_not_errors() {
    let environment = Environment::new();
    assert!(!environment.ok("volume list").stderr.is_empty());
    assert_eq!(environment.ok("volume list -q").stderr, "");
    environment.ok("volume create 1G --name pgdata");
    assert_eq!(environment.ok("volume rm pgdata -y -q").stderr, "");
    environment.refused(1, "volume show nope -q", "volume nope does not exist");
}

#[test]
fn verbose_tells_on_standard_error_only() {
    let environment = Environment::new();
    let loud = environment.ok("volume create 1G --name pgdata -vvv -o json");
    assert_eq!(loud.json()["name"], "pgdata");
    assert!(!loud.stderr.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let environment = Environment::new();
    let mut shell = environment.program("/bin/bash");
    let script = "set -o pipefail; \"$0\" completion bash | head -n 1 >/dev/null";
    let ran = ran(shell.args(["-c", script]).arg(binary()));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_standard_output_that_is_full_is_an_error() {
    let environment = Environment::new();
    let mut shell = environment.program("/bin/sh");
    let ran = ran(shell
        .args(["-c", "\"$0\" config > /dev/full"])
        .arg(binary()));
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr
            .starts_with("Error: cannot write to standard output\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn settings_come_from_the_file_then_the_environment_then_the_option() {
    let environment = Environment::new();
    let elsewhere = environment.home().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    environment.file("elsewhere/config.toml", "vcpus = 3\nmemory = '1G'\n");
    let mut command = environment.sistemo();
    command
        .args(["config", "--data-dir", "elsewhere"])
        .env("SISTEMO_VCPUS", "4");
    let ran = ran(&mut command);
    environment.assert_snapshot("settings", &ran.stdout);

    let settings = environment.ok("config -o json").json();
    assert_eq!(settings[0]["key"], "data_dir");
    assert_eq!(
        settings[0]["value"],
        environment.data_dir().display().to_string()
    );
    assert!(!environment.data_dir().exists(), "config makes nothing");
}

#[test]
fn bad_settings_name_their_origin() {
    let environment = Environment::new();
    let with = |name: &str, value: &str| {
        let mut command = environment.sistemo();
        let ran = ran(command.args(["config"]).env(name, value));
        assert_eq!(ran.status, 1);
        ran.stderr
    };
    let told = with("SISTEMO_MEMORY", "lots");
    assert!(told.contains("SISTEMO_MEMORY"), "{told}");
    assert!(told.contains("`lots`"), "{told}");

    fs::create_dir(environment.data_dir()).unwrap();
    environment.file(".sistemo/config.toml", "colour = 'red'\n");
    let told = environment.refused(1, "volume list", "unknown setting `colour`");
    assert!(
        told.contains("Hint: the settings are default_pool, "),
        "{told}"
    );
}

#[test]
fn without_a_home_a_data_directory_must_be_named() {
    let environment = Environment::new();
    let mut command = environment.sistemo();
    let refused = ran(command
        .args(["volume", "list", "-o", "json"])
        .env_remove("HOME"));
    assert_eq!(refused.status, 1);
    assert_eq!(refused.error()["code"], "no-home");

    let mut command = environment.sistemo();
    command.args(["volume", "list", "-q"]).env_remove("HOME");
    let named = ran(command.env("SISTEMO_DATA_DIR", environment.data_dir()));
    assert_eq!(named.status, 0, "{}", named.stderr);
}

#[test]
fn the_ssh_key_is_made_once() {
    let environment = Environment::new();
    let first = environment.ok("ssh-key");
    assert!(first.stdout.starts_with("ssh-ed25519 "), "{}", first.stdout);
    let again = environment.ok("ssh-key -o json").json();
    assert_eq!(again["public"], first.stdout.trim_end());
    let private = environment.data_dir().join("ssh/sistemo_key");
    assert_eq!(again["private_path"], private.display().to_string());
}

#[test]
fn completions_are_scripts_that_their_shells_accept() {
    let environment = Environment::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = environment.ok(&format!("completion {shell}")).stdout;
        assert!(script.contains("preserve-storage"), "{shell}");
    }
    let script = environment.ok("completion bash").stdout;
    let mut bash = environment.program("/bin/bash");
    assert_eq!(ran(bash.arg("-n").write_stdin(script)).status, 0);
}

#[test]
fn every_command_has_a_manual_page() {
    let environment = Environment::new();
    environment.ok("man pages");
    let entries = fs::read_dir(environment.home().join("pages")).unwrap();
    let pages: HashSet<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in [
        "sistemo.1",
        "sistemo-volume-create.1",
        "sistemo-machine-volume-attach.1",
    ] {
        assert!(pages.contains(page), "{pages:?}");
    }
    assert!(
        !pages.contains("sistemo-monitor.1"),
        "hidden commands have none"
    );
    File::create(environment.home().join("file")).unwrap();
    environment.refused(1, "man file", "cannot write the manual pages into file");
}

#[test]
fn the_version_is_told() {
    let environment = Environment::new();
    let expected = concat!("sistemo ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(environment.ok("--version").stdout, expected);
}
