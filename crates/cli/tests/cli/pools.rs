//! `sistemo pool …`, and pools where other commands meet them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::environment::{Environment, Ordinary, ran};

#[test]
fn the_life_of_a_pool() {
    let environment = Environment::new();
    let vm = environment.home().join("vm");
    let scene = environment.scene(&[
        "pool drivers",
        &format!("pool add foo xen -O dir_path={}", vm.display()),
        "pool add foo file -O dir_path=/elsewhere",
        "pool add bar zfs",
        "pool add bar file",
        "pool add bar file -O dir_path=vm",
        &format!("pool add bar file -O dir_path={}/in", vm.display()),
        "volume create 1G --name data -P foo",
        "volume create 1G --name usual",
        "volume list",
        "pool remove foo",
        "pool remove default",
        "pool remove nope",
        "pool set foo dir_path=/no/such/place",
        "volume delete data -y",
        "pool rm foo",
        "volume trash empty -P foo -y",
        "pool rm foo",
        "pool show foo",
    ]);
    let conf = fs::read_to_string(environment.data_dir().join("storage.conf")).unwrap();
    environment.assert_snapshot("the_life_of_a_pool", &without_sizes(&scene));
    assert_eq!(conf, "");
}

/// The sizes of the host's filesystem differ from host to host, and their columns with them.
fn without_sizes(scene: &str) -> String {
    let mut text = String::new();
    for line in scene.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.contains("PROVISIONED") || line.starts_with("foo  ") {
            let mut known = words.clone();
            if let Some(path) = words.iter().position(|word| word.starts_with('/')) {
                known = [&words[..4], &["…"], &words[path..]].concat();
            }
            text.push_str(&known.join(" "));
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

#[test]
fn a_pool_as_json_has_every_documented_field() {
    let environment = Environment::new();
    let listed = environment.ok("pool list -o json").json();
    let pool = &listed[0];
    for field in [
        "name",
        "driver",
        "path",
        "available",
        "reason",
        "default",
        "size_bytes",
        "used_bytes",
        "free_bytes",
        "provisioned_bytes",
        "volumes",
        "trash",
        "images",
        "clones",
        "snapshots",
        "resizable",
        "options",
        "file",
        "line",
    ] {
        // What it can do is known once it was used.
        let may_be_null = ["reason", "clones", "snapshots", "file", "line"];
        let told = pool.get(field).unwrap_or_else(|| panic!("{field}"));
        assert!(!told.is_null() || may_be_null.contains(&field), "{field}");
    }
    assert_eq!(pool.as_object().unwrap().len(), 19);
    assert_eq!(pool["options"]["dir_path"], pool["path"]);
    let shown = environment.ok("pool show default -o json").json();
    assert_eq!(shown["path"], pool["path"]);
    assert_eq!(shown.as_object().unwrap().len(), 19);
    let drivers = environment.ok("pool drivers -o json").json();
    assert_eq!(drivers[0]["name"], "file");
    assert_eq!(drivers[0]["options"][0]["required"], true);
    assert_eq!(
        environment.ok("config -o json").json()[1]["value"],
        "none",
        "no storage.conf is in effect"
    );
}

#[test]
fn mistakes_have_codes() {
    let environment = Environment::new();
    let vm = environment.home().join("vm");
    environment.ok(&format!("pool add foo file -O dir_path={}", vm.display()));
    environment.ok("volume create 16M -P foo --name data");
    for (line, code) in [
        ("pool show nope", "not-found"),
        ("volume create 16M -P nope", "not-found"),
        ("pool add bar zfs", "not-found"),
        ("pool add foo file", "name-taken"),
        ("pool add bar file", "pool-misconfigured"),
        ("pool set foo colour=red", "pool-misconfigured"),
        (
            &format!("pool set foo dir_path={}", environment.data_dir().display()),
            "pool-place",
        ),
        ("pool set foo dir_path=/no/such/place", "pool-failed"),
        ("pool remove foo", "pool-not-empty"),
        ("pool remove default", "pool-needed"),
    ] {
        let ran = environment.run(&format!("{line} -o json"));
        assert_eq!(ran.status, 1, "{line}: {}", ran.stdout);
        assert_eq!(ran.error()["code"], code, "{line}");
    }
    for line in [
        "pool add bar file -O dir_path",
        "pool set foo dir_path=/a dir_path=/b",
        "pool show a/b",
    ] {
        environment.refused(2, line, "");
    }
    environment.file(".sistemo/storage.conf", "nonsense\n");
    let ran = environment.run("pool list -o json");
    assert_eq!(ran.error()["code"], "storage-conf-failed");
    let mut command = environment.sistemo();
    command.args(["volume", "create", "16M", "-o", "json"]);
    environment.file(".sistemo/storage.conf", "");
    let told = ran_with(&mut command, "SISTEMO_DEFAULT_POOL", "nope");
    assert_eq!(told["code"], "no-default-pool");
    assert_eq!(told["hint"], "sistemo pool list");
}

fn ran_with(command: &mut assert_cmd::Command, name: &str, value: &str) -> serde_json::Value {
    ran(command.env(name, value)).error()
}

#[test]
fn a_file_of_qubes_is_used_as_it_is() {
    let environment = Environment::new();
    let vm = environment.home().join("qubes-vm");
    let qubes = format!(
        "[default] ; poolname\r\ndriver=xen ; the default xen storage\r\n\r\n\
         [foo]\r\ndriver=xen\r\ndir_path={}\r\n",
        vm.display()
    );
    environment.file("qubes.conf", &qubes);
    environment.disk("disk.raw", 16);
    // A path of the user's own, which the machine's monitor is not in.
    let run = |line: &str| {
        let mut command = environment.sistemo();
        command.env("SISTEMO_STORAGE_CONF", "qubes.conf");
        let ran = ran(command.args(line.split(' ')));
        assert_eq!(ran.status, 0, "{line}: {}", ran.stderr);
        ran
    };
    run("machine deploy ./disk.raw --name d -Pfoo --storage 64M --memory 128M --no-wait");
    let status = run("machine status d -o json").json();
    run("machine stop d --force");
    assert_eq!(status["status"], "running");
    let root = run("volume show d-root -o json").json();
    assert_eq!(root["pool"], "foo");
    assert!(
        root["path"]
            .as_str()
            .unwrap()
            .starts_with(vm.to_str().unwrap())
    );
    let settings = run("config -o json").json();
    assert_eq!(settings[1]["origin"], "SISTEMO_STORAGE_CONF");
    let kept = fs::read_to_string(environment.home().join("qubes.conf")).unwrap();
    assert_eq!(kept, qubes);
}

#[test]
fn a_file_that_an_ordinary_user_may_not_write_is_refused_with_advice() {
    let Some(user) = Ordinary::new() else { return };
    let place = user.home().join("etc");
    fs::create_dir(&place).unwrap();
    let file = place.join("pools.conf");
    fs::File::create(&file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let vm = user.home().join("vm");
    user.run("volume list");
    std::os::unix::fs::symlink(&file, user.home().join(".sistemo/storage.conf")).unwrap();
    let told = user.run(&format!("pool add foo file -O dir_path={}", vm.display()));
    assert_eq!(told.status, 1, "{}", told.stdout);
    assert!(told.stderr.contains("cannot be changed"), "{}", told.stderr);
    assert!(
        told.stderr.contains("Hint: run it as a user who may write"),
        "{}",
        told.stderr
    );
    assert!(!vm.exists());
    fs::remove_file(user.home().join(".sistemo/storage.conf")).unwrap();
    let told = user.run(&format!("pool add foo file -O dir_path={}", vm.display()));
    assert_eq!(told.status, 0, "{}", told.stderr);
}

#[test]
fn a_pool_whose_directory_is_gone_is_told_and_the_others_go_on() {
    let environment = Environment::new();
    let vm = environment.home().join("vm");
    environment.ok(&format!("pool add foo file -O dir_path={}", vm.display()));
    environment.ok("volume create 16M -P foo --name data");
    environment.ok("volume create 16M --name usual");
    fs::remove_dir_all(&vm).unwrap();
    let volumes = environment.ok("volume list -o json").json();
    assert_eq!(volumes[0]["status"], "error");
    assert!(
        volumes[0]["reason"].as_str().unwrap().contains("pool foo"),
        "{volumes}"
    );
    assert_eq!(volumes[1]["status"], "available");
    let pools = environment.ok("pool list");
    assert!(
        pools.stdout.lines().next().unwrap().ends_with("  REASON"),
        "{}",
        pools.stdout
    );
    environment.refused(1, "volume create 16M -P foo", "Hint: sistemo pool list");
    environment.refused(1, "volume delete data -y", "pool foo");
    assert!(
        environment
            .run("doctor -o json")
            .stdout
            .contains("foo: pool foo")
    );
    assert!(!vm.exists());
}
