//! `sistemo volume snapshot …`, `revert`, `clone`, `export` and `import`

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::environment::{Environment, ran};

/// An environment with a bare volume `data` of 16 MB, whose second MB holds a word.
fn with_data() -> Environment {
    let environment = Environment::new();
    environment.ok("volume create 16M --name data --fs none");
    write(&environment, "first");
    environment
}

fn file_of(environment: &Environment, volume: &str) -> File {
    let shown = environment.ok(&format!("volume show {volume} -o json"));
    let path = shown.json()["path"].as_str().unwrap().to_owned();
    File::options().read(true).write(true).open(path).unwrap()
}

fn write(environment: &Environment, word: &str) {
    let file = file_of(environment, "data");
    file.write_all_at(word.as_bytes(), 1 << 20).unwrap();
}

fn word(environment: &Environment, volume: &str) -> String {
    let mut word = [0; 5];
    let file = file_of(environment, volume);
    file.read_exact_at(&mut word, 1 << 20).unwrap();
    String::from_utf8(word.to_vec()).unwrap()
}

#[test]
fn the_life_of_a_snapshot() {
    let environment = Environment::new();
    let scene = environment.scene(&[
        "volume create 16M --name data --fs none",
        "volume snapshot list data",
        "volume revert data -y",
        "volume snapshot create data --name one",
        "volume snapshot create data --name one",
        "volume snapshot create data --name two -q",
        "volume snapshot ls data",
        "volume show data",
        "volume revert data --discard",
        "volume revert data none",
        "volume revert data one --discard -y",
        "volume snapshot pin data one",
        "volume snapshot pin data one",
        "volume snapshot delete data two one -y",
        "volume snapshot delete data two none -y",
        "volume delete data -y",
        "volume snapshot list data",
        "volume snapshot unpin data one -q",
        "volume snapshot unpin data one",
        "volume set data revisions_to_keep=2",
        "volume set data revisions_to_keep=-1",
        "volume set data colour=red",
        "volume set data revisions_to_keep=1 revisions_to_keep=2",
        "volume set none revisions_to_keep=1",
        "volume clone data copy",
        "volume clone data copy2 --snapshot none",
        "volume snapshot delete data one",
        "volume snapshot delete data one one -y",
        "volume snapshot rm data one two -y",
        "volume snapshot list data -q",
        "volume snapshot create data --name ../one",
    ]);
    // How the data is kept depends on where the tests run.
    let scene = scene
        .replace("(reflink)", "(copied)")
        .replace("16 MB  0 B\n", "16 MB  —\n")
        .replace("cloned data to copy (copied)", "copied data to copy: 0 B");
    environment.assert_snapshot("the_life_of_a_snapshot", &scene);
}

#[test]
fn a_volume_goes_back_and_its_clone_does_not() {
    let environment = with_data();
    environment.ok("volume snapshot create data --name one");
    write(&environment, "later");
    environment.ok("volume clone data now");
    environment.ok("volume clone data then --snapshot one");
    environment.ok("volume resize data 32M");
    let reverted = environment.ok("volume revert data -y -o json").json();
    assert_eq!(reverted["size_mb"], 16);
    for (volume, expected) in [("data", "first"), ("now", "later"), ("then", "first")] {
        assert_eq!(word(&environment, volume), expected, "{volume}");
    }
    let shown = environment.ok("volume show data -o json").json();
    assert_eq!(shown["snapshots"][0]["name"], "one");
    assert_eq!(shown["snapshots"][0]["size_mb"], 16);
    assert_eq!(shown["name"], "data");
}

#[test]
fn what_a_revert_replaces_is_kept_and_nobody_is_asked() {
    let environment = with_data();
    environment.ok("volume snapshot create data --name one");
    write(&environment, "later");
    let reverted = environment.ok("volume revert data -o json");
    let kept = reverted.json()["kept_as"].as_str().unwrap().to_owned();
    let told = format!("what it held is kept as {kept}");
    assert!(reverted.stderr.contains(&told), "{}", reverted.stderr);
    let shown = environment.ok("volume show data -o json").json();
    assert_eq!(shown["snapshots"][1]["name"], kept.as_str());
    assert_eq!(shown["snapshots"][1]["kind"], "replaced");
    assert_eq!(shown["dirty"], false);
    assert_eq!(word(&environment, "data"), "first");
    environment.ok(&format!("volume revert data {kept} --discard -y"));
    assert_eq!(word(&environment, "data"), "later");
}

#[test]
fn a_volume_says_what_is_kept_of_it_and_a_clone_what_it_is_of() {
    let environment = with_data();
    environment.ok("volume set data revisions_to_keep=2");
    let shown = environment.ok("volume show data -o json").json();
    assert_eq!(shown["revisions_to_keep"], 2);
    assert_eq!(shown["revisions_set_by"], "volume");
    assert!(shown["outdated"].is_null() && shown["origin"].is_null());
    environment.ok("volume clone data copy");
    let shown = environment.ok("volume show copy -o json").json();
    assert_eq!(shown["origin"]["volume"], "data");
    assert_eq!(shown["outdated"], false);
    assert_eq!(shown["revisions_set_by"], "pool");
    environment.ok("volume resize data 32M");
    let table = environment.ok("volume show copy").stdout;
    assert!(table.contains("(outdated)"), "{table}");
}

#[test]
fn a_delete_says_how_many_snapshots_go_with_it() {
    let environment = Environment::with_machine();
    for (volume, snapshots) in [("db1-root", "one"), ("db1-root", "two")] {
        environment.ok(&format!(
            "volume snapshot create {volume} --name {snapshots}"
        ));
    }
    let refused = "machine db1 and its root volume db1-root (64 MB) with its 2 snapshots would be";
    environment.refused(1, "machine delete db1", refused);
    environment.ok("machine delete db1 --preserve-storage");
    let refused = "volume db1-root (64 MB) with its 2 snapshots would be deleted";
    environment.refused(1, "volume delete db1-root", refused);
    environment.ok("volume delete db1-root -y --purge");
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn a_volume_goes_to_a_file_and_comes_back() {
    let environment = with_data();
    let written = environment.ok("volume export data data.raw -o json").json();
    let file = environment.home().join("data.raw");
    assert_eq!(written["path"], file.to_str().unwrap());
    assert_eq!(written["size_bytes"], 16 << 20);
    assert_eq!(fs::metadata(&file).unwrap().len(), 16 << 20);
    environment.refused(1, "volume export data data.raw", "it exists already");
    environment.refused(1, "volume export data .", "it is a directory");
    let back = environment
        .ok("volume import data.raw --name back --fs ext4 -o json")
        .json();
    assert_eq!(
        (&back["size_mb"], &back["fs"]),
        (&16.into(), &"ext4".into())
    );
    assert_eq!(word(&environment, "back"), "first");
    File::create(environment.home().join("empty")).unwrap();
    environment.refused(1, "volume import empty --name e", "it is empty");
    environment.refused(1, "volume import . --name e", "not a regular file");
    environment.refused(1, "volume import /dev/null --name e", "not a regular file");
    environment.refused(1, "volume import data.raw --name back", "already exists");
    environment.refused(2, "volume export data x --format qed", "qed");
}

#[test]
fn a_volume_goes_through_a_pipe() {
    let environment = with_data();
    let mut export = environment.sistemo();
    let exported = export
        .args(["volume", "export", "data", "-"])
        .output()
        .unwrap();
    assert!(exported.status.success());
    assert_eq!(exported.stdout.len(), 16 << 20);
    let told = String::from_utf8(exported.stderr).unwrap();
    assert!(told.contains("exported data: 16 MB"), "{told}");

    let mut import = environment.sistemo();
    import.args(["volume", "import", "-", "--name", "back"]);
    let imported = ran(import.write_stdin(exported.stdout));
    assert_eq!(imported.status, 0, "{}", imported.stderr);
    assert_eq!(word(&environment, "back"), "first");
    let used = environment.ok("volume show back -o json").json()["used_bytes"].clone();
    assert!(used.as_u64().unwrap() < 1 << 20, "{used}");

    let mut nothing = environment.sistemo();
    nothing.args(["volume", "import", "-", "--name", "none", "-o", "json"]);
    let refused = ran(nothing.write_stdin(""));
    assert_eq!(
        (refused.status, &refused.error()["code"]),
        (1, &"empty-input".into())
    );
}

#[test]
fn a_pipe_that_is_closed_is_an_error() {
    let environment = Environment::new();
    environment.ok("volume create 64M --name data --fs none");
    let program = crate::environment::binary().display().to_string();
    let line = format!("{{ '{program}' volume export data -; echo $? >&2; }} | true");
    let mut shell = environment.program("/bin/sh");
    let told = ran(shell.args(["-c", &line])).stderr;
    assert!(told.ends_with("\n1\n"), "{told}");
    assert!(told.contains("Error: cannot export volume data"), "{told}");
}

#[test]
fn what_a_pool_cannot_do_is_said_of_the_pool() {
    let environment = Environment::new();
    environment.ok("volume create 16M --name data");
    let refused = environment.run("pool resize default 20G -o json");
    assert_eq!(refused.error()["code"], "pool-lacks-power");
    let shown = environment.ok("pool show default -o json").json();
    for power in ["clones", "snapshots"] {
        let cost = shown[power].as_str().unwrap();
        assert!(["instant", "copy"].contains(&cost), "{power}: {cost}");
    }
    assert_eq!(shown["resizable"], false);
    let mut file = File::create(environment.home().join("i.raw")).unwrap();
    file.write_all(&[7; 4096]).unwrap();
    if shown["clones"] == "copy" {
        let line = "image import i.raw --name i -P default";
        environment.refused(1, line, "pool default cannot clone without copying");
    }
}

#[test]
fn a_volume_moves_to_another_pool_and_back() {
    let environment = with_data();
    environment.ok("volume snapshot create data --name one");
    write(&environment, "later");
    let place = environment.home().join("other");
    let place = place.display();
    environment.ok(&format!("pool add other qcow2 -O dir_path={place}"));
    let before = environment.ok("volume show data -o json").json();
    let moved = environment.ok("volume move data -P other -o json").json();
    assert_eq!(
        (&moved["id"], &moved["name"]),
        (&before["id"], &before["name"])
    );
    assert_eq!(moved["pool"], "other");
    let scene = environment.scene(&[
        "volume move data -P other",
        "volume move data",
        "volume move data -P none",
        "volume move none -P default",
        "volume move data -P default -q",
        "volume move data -P other",
        "volume move data -P default",
        "volume snapshot list data -q",
    ]);
    environment.assert_snapshot("a_volume_moves_to_another_pool_and_back", &scene);
    assert_eq!(word(&environment, "data"), "later");
    environment.ok("volume revert data one -y");
    assert_eq!(word(&environment, "data"), "first");
}
