//! `sistemo volume check`, `trim` and `usage`

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sistemo_host::program::Program;
use sistemo_testkit::{Requirement, met};

use crate::environment::{Environment, binary};

const E2FSPROGS: [Requirement; 2] = [
    Requirement::Program("e2fsck"),
    Requirement::Program("dumpe2fs"),
];

fn path_of(environment: &Environment, volume: &str) -> PathBuf {
    let shown = environment.ok(&format!("volume show {volume} -o json"));
    shown.json()["path"].as_str().unwrap().into()
}

fn write(environment: &Environment, volume: &str, data: &[u8], at: u64) {
    let path = path_of(environment, volume);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(data, at).unwrap();
}

/// Breaks the first group descriptor of an ext4 with blocks of 1 KiB.
fn break_descriptor(environment: &Environment, volume: &str) {
    write(environment, volume, &[0xa5; 12], 2048 + 4);
}

#[test]
fn a_volume_is_checked_and_mended() {
    if !met(&E2FSPROGS) {
        return;
    }
    let environment = Environment::new();
    environment.ok("volume create 32M --name data");
    let sound = environment.ok("volume check data");
    let expected = "\
PART        VERDICT  CHECKED WITH  FOUND
data        ok       file          —
filesystem  ok       e2fsck        —
";
    assert_eq!(sound.stdout, expected);
    let nothing = environment.ok("volume check data --repair").stderr;
    assert!(
        nothing.contains("nothing of data had to be repaired"),
        "{nothing}"
    );

    break_descriptor(&environment, "data");
    let damaged = environment.run("volume check data");
    assert_eq!(damaged.status, 1);
    assert!(
        damaged
            .stdout
            .contains("filesystem  damaged  e2fsck        "),
        "{}",
        damaged.stdout
    );
    assert!(
        damaged
            .stderr
            .contains("`sistemo volume check data --repair`"),
        "{}",
        damaged.stderr
    );
    assert!(!damaged.stderr.contains("Error"), "it did as it was told");
    let json = environment.run("volume check data -o json");
    assert_eq!(json.status, 1);
    let json = json.json();
    assert_eq!(
        (&json["name"], &json["holds"]),
        (&"data".into(), &"ext4".into())
    );
    assert_eq!(json["parts"][1]["verdict"], "damaged");
    assert!(!json["parts"][1]["found"].as_array().unwrap().is_empty());

    let repaired = environment.ok("volume check data --repair");
    assert!(
        repaired.stdout.contains("filesystem  ok"),
        "{}",
        repaired.stdout
    );
    assert!(
        repaired.stderr.contains("repaired the filesystem of data"),
        "{}",
        repaired.stderr
    );
    environment.ok("volume check data");
}

#[test]
fn a_filesystem_that_is_gone_is_told_of() {
    if !met(&[Requirement::Program("mkfs.xfs")]) {
        return;
    }
    let environment = Environment::new();
    environment.ok("volume create 320M --name data --fs xfs");
    write(&environment, "data", b"gone", 0);
    let lost = environment.run("volume check data");
    assert_eq!(lost.status, 1);
    let told = "it was made with xfs, of which there is no sign";
    assert!(lost.stdout.contains(told), "{}", lost.stdout);
    let advice = "`sistemo volume revert data SNAPSHOT`";
    assert!(lost.stderr.contains(advice), "{}", lost.stderr);
    let refused = environment.run("volume check data --repair");
    assert_eq!(refused.status, 1);
    let told = "cannot be repaired: nothing is left to find it by";
    assert!(refused.stderr.contains(told), "{}", refused.stderr);
    assert!(refused.stderr.contains(advice), "{}", refused.stderr);
}

#[test]
fn unused_blocks_are_given_back() {
    if !met(&E2FSPROGS) {
        return;
    }
    let environment = Environment::new();
    environment.ok("volume create 32M --name data");
    // Where nothing of the filesystem is; a part of it is zeros as well.
    let rest = vec![7; 6 << 20];
    write(&environment, "data", &rest, 20 << 20);
    let trimmed = environment.ok("volume trim data -o json").json();
    assert_eq!(trimmed["holds"], "ext4");
    assert_eq!(trimmed["reason"], serde_json::Value::Null);
    let bytes = |key: &str| trimmed[key].as_u64().unwrap();
    assert!(bytes("unused_bytes") >= 5 << 20, "{trimmed}");
    assert_eq!(
        bytes("given_back_bytes"),
        bytes("used_before_bytes") - bytes("used_bytes")
    );
    let again = environment.ok("volume trim data").stdout;
    assert!(again.contains("Given back:       0 B"), "{again}");
    environment.ok("volume check data");
}

#[test]
fn usage_tells_of_one_volume_or_of_all() {
    let environment = Environment::new();
    let none = environment.ok("volume usage");
    assert!(none.stderr.contains("no volumes yet"), "{}", none.stderr);
    environment.ok("volume create 16M --name data --fs none");
    environment.ok("volume create 32M --name more --fs none");
    write(&environment, "data", &vec![7; 1 << 20], 0);
    let all = environment.ok("volume usage -o json").json();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(
        (&all[0]["name"], &all[1]["name"]),
        (&"data".into(), &"more".into())
    );
    assert!(all[0]["used_bytes"].as_u64().unwrap() >= 1 << 20);
    let one = environment.ok("volume usage more").stdout;
    let lines: Vec<_> = one
        .lines()
        .map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(lines, [Some("NAME"), Some("more")]);
    fs::remove_file(path_of(&environment, "data")).unwrap();
    let lost = environment.ok("volume usage");
    assert!(lost.stderr.contains("data: "), "{}", lost.stderr);
    assert!(lost.stdout.contains("more"), "the others are told");
}

#[test]
fn what_is_not_there_is_refused() {
    let environment = Environment::new();
    for line in ["volume check none", "volume trim none", "volume usage none"] {
        environment.refused(1, line, "volume none does not exist");
    }
    environment.refused(2, "volume check", "<VOLUME>");
    environment.refused(2, "volume trim a b", "b");
}

/// Puts a script in front of the real e2fsck that says that it has begun, waits until it may go
/// on, and then is the real one.
fn slow_e2fsck(environment: &Environment) -> PathBuf {
    let real = Program::find("e2fsck").unwrap().path().to_owned();
    let home = environment.home().display();
    let directory = environment.home().join("slow");
    fs::create_dir(&directory).unwrap();
    let text = format!(
        "#!/bin/sh\n: > {home}/begun\nwhile [ ! -e {home}/go-on ]; do sleep 0.02; done\n\
         {} \"$@\"\nstatus=$?\n: > {home}/ended\nexit $status\n",
        real.display()
    );
    environment.file("slow/e2fsck", &text);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.join("e2fsck"), mode).unwrap();
    directory
}

fn wait_for(environment: &Environment, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !environment.home().join(name).exists() {
        assert!(Instant::now() < deadline, "never came: {name}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_repair_goes_on_without_us_and_holds_the_volume_until_it_is_done() {
    if !met(&E2FSPROGS) {
        return;
    }
    let environment = Environment::new();
    environment.ok("volume create 32M --name data");
    // Not unmounted: so the first e2fsck that runs is the one that mends.
    write(&environment, "data", &[0], 1024 + 0x3a);
    let mut path = slow_e2fsck(&environment).into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let mut repair = Program::at(binary())
        .arg("--data-dir")
        .arg(environment.data_dir())
        .args(["volume", "check", "data", "--repair"])
        .env("PATH", path)
        .spawn()
        .unwrap();
    wait_for(&environment, "begun");
    repair.kill();
    let busy = environment.refused(1, "volume check data", "is in use by");
    assert!(busy.contains("sistemo volume check data"), "{busy}");
    environment.file("go-on", "");
    wait_for(&environment, "ended");
    let sound = environment.run("volume check data");
    assert_eq!(sound.status, 0, "{}{}", sound.stdout, sound.stderr);
}
