//! `sistemo volume …`

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::environment::{Environment, ran};

#[test]
fn the_life_of_a_volume() {
    let environment = Environment::new();
    let scene = environment.scene(&[
        "volume list",
        "volume create 5G --name pgdata",
        "volume add 1.5G --name media --fs xfs",
        "volume ls",
        "volume show pgdata",
        "volume resize pgdata 10GB",
        "volume resize pgdata 11GB --grow-fs",
        "volume rename pgdata postgres",
        "volume rm postgres -y",
        "volume rm media --purge -y",
        "volume trash empty -y",
        "volume list -q",
    ]);
    environment.assert_snapshot("the_life_of_a_volume", &scene);
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn an_empty_volume_of_5_gb_takes_under_4_mb() {
    let environment = Environment::new();
    let volume = environment.ok("volume create 5G -o json").json();
    let file = fs::metadata(volume["path"].as_str().unwrap()).unwrap();
    assert_eq!(file.len(), 5 << 30);
    assert!(file.blocks() * 512 < 4 << 20, "{} blocks", file.blocks());
    assert_eq!(volume["used_bytes"], file.blocks() * 512);
    let id = volume["id"].as_str().unwrap();
    assert_eq!(volume["name"], id[..8], "a name that is made up");
}

#[test]
fn every_filesystem_can_be_asked_for() {
    let environment = Environment::new();
    for (fs, size) in [
        ("ext4", "16M"),
        ("xfs", "300M"),
        ("btrfs", "110M"),
        ("none", "1M"),
    ] {
        let volume = environment
            .ok(&format!("volume create {size} --fs {fs} -o json"))
            .json();
        assert_eq!(volume["fs"], fs);
    }
    assert_eq!(environment.volumes().len(), 4);
}

#[test]
fn bad_sizes_are_named() {
    let environment = Environment::new();
    for (size, named) in [
        ("0", "size `0` is zero"),
        ("-1", "size `-1` is negative"),
        ("-1G", "size `-1G` is negative"),
        ("5X", "`5X` is not a size"),
        ("''", "`` is not a size"),
        (
            "99999999T",
            "size `99999999T` is larger than any file can be",
        ),
        ("1.3333M", "size `1.3333M` is not a multiple of 512 bytes"),
    ] {
        environment.refused(2, &format!("volume create {size}"), named);
        environment.refused(2, &format!("volume resize pgdata {size}"), named);
    }
    for (line, named) in [
        (
            "volume create 15M",
            "ext4 needs at least 16 MB; 15 MB is too small",
        ),
        (
            "volume create 299M --fs xfs",
            "xfs needs at least 300 MB; 299 MB is too small",
        ),
        (
            "volume create 109M --fs btrfs",
            "btrfs needs at least 110 MB; 109 MB is too small",
        ),
    ] {
        environment.refused(1, line, named);
    }
    assert!(environment.volumes().is_empty());
    assert_eq!(environment.volume_files(), [""; 0]);
}

#[test]
fn bad_names_are_named() {
    let environment = Environment::new();
    let long = "n".repeat(64);
    for (name, named) in [
        ("''", "a volume name cannot be empty"),
        (long.as_str(), "has 64 characters; at most 63 are allowed"),
        ("../x", "volume name `../x` contains `/`"),
        ("a/b", "volume name `a/b` contains `/`"),
        ("-x", "volume name `-x` cannot start with `-`"),
        ("'a b'", "volume name `a b` contains ` `"),
        ("🦀", "volume name `🦀` contains `🦀`"),
    ] {
        environment.refused(2, &format!("volume create 1G --name {name}"), named);
    }
    assert!(environment.volumes().is_empty());
}

#[test]
fn a_name_is_unique_also_against_ids() {
    let environment = Environment::new();
    let volume = environment
        .ok("volume create 1G --name pgdata -o json")
        .json();
    let id = volume["id"].as_str().unwrap();
    environment.refused(
        1,
        "volume create 1G --name pgdata",
        "volume pgdata already exists",
    );
    environment.refused(1, &format!("volume create 1G --name {id}"), id);
    environment.ok("volume create 1G --name other");
    environment.refused(
        1,
        "volume rename other pgdata",
        "volume pgdata already exists",
    );
    assert_eq!(environment.volumes().len(), 2);
    assert_eq!(environment.disks(), 2);
}

#[test]
fn a_volume_is_found_by_name_id_and_prefix() {
    let environment = Environment::new();
    let id = environment
        .ok("volume create 1G --name pgdata -o json")
        .json()["id"]
        .clone();
    let id = id.as_str().unwrap();
    for reference in ["pgdata", id, &id[..8], &id[..20]] {
        let found = environment
            .ok(&format!("volume show {reference} -o json"))
            .json();
        assert_eq!(found["id"], id);
    }
    for reference in [&id[..7], "pgdat", "nope"] {
        environment.refused(1, &format!("volume show {reference}"), "does not exist");
    }
}

#[test]
fn a_volume_grows_and_never_shrinks() {
    let environment = Environment::new();
    environment.ok("volume create 1G --name pgdata");
    for size in ["1G", "512M"] {
        environment.refused(
            1,
            &format!("volume resize pgdata {size}"),
            "volume pgdata has 1 GB already",
        );
    }
    let grown = environment.ok("volume resize pgdata 2G -o json").json();
    assert_eq!(grown["size_bytes"], 2_u64 << 30);
}

#[test]
fn a_delete_without_a_terminal_needs_a_word_beforehand() {
    let environment = Environment::new();
    environment.ok("volume create 1G --name pgdata");
    let scene = environment.scene(&[
        "volume delete pgdata",
        "volume delete pgdata -o json",
        "volume list -q",
        "volume delete pgdata -y -o json",
    ]);
    environment.assert_snapshot(
        "a_delete_without_a_terminal_needs_a_word_beforehand",
        &scene,
    );
}

#[test]
fn either_all_volumes_can_be_deleted_or_none_is() {
    let environment = Environment::new();
    environment.ok("volume create 1G --name a");
    let id = environment.ok("volume create 1G --name b -o json").json()["id"].clone();
    let id = id.as_str().unwrap();
    environment.refused(1, "volume delete a nope -y", "volume nope does not exist");
    environment.refused(
        1,
        &format!("volume delete a b {id} -y"),
        "volume b is named more than once",
    );
    assert_eq!(environment.volumes().len(), 2);
    let deleted = environment.ok("volume delete a b -y -o json").json();
    assert_eq!(deleted.as_array().unwrap().len(), 2);
    assert!(environment.volumes().is_empty());
}

/// Runs a line on a terminal of its own, types `answer`, and returns the status and what the
/// terminal showed.
fn on_a_terminal(environment: &Environment, line: &str, answer: &str) -> (i32, String) {
    let binary = crate::environment::binary().display();
    let mut command = environment.program("script");
    command
        .args(["-qec", &format!("{binary} {line}"), "/dev/null"])
        .write_stdin(answer.to_owned());
    let ran = ran(&mut command);
    (ran.status, ran.stdout)
}

#[test]
fn a_delete_asks_on_a_terminal_and_takes_no_for_an_answer() {
    let environment = Environment::new();
    environment.ok("volume create 5G --name pgdata");
    for answer in ["n\n", "\n"] {
        let (status, shown) = on_a_terminal(&environment, "volume delete pgdata", answer);
        assert!(
            shown.contains("Delete volume pgdata (5 GB)? It can be restored until 2"),
            "{shown}"
        );
        assert!(
            shown.contains("not confirmed; nothing was changed"),
            "{shown}"
        );
        assert_eq!(status, 1);
        assert_eq!(environment.volumes().len(), 1);
    }
    let line = "volume delete pgdata --purge -o json";
    let (status, shown) = on_a_terminal(&environment, line, "y\n");
    assert!(
        shown.contains("Delete volume pgdata (5 GB)? It cannot be restored. [y/N] "),
        "{shown}"
    );
    assert_eq!(status, 0);
    assert!(environment.volumes().is_empty());
}

#[test]
fn a_status_is_coloured_on_a_terminal_only_and_never_with_no_color() {
    let environment = Environment::with_machine();
    let (_, shown) = on_a_terminal(&environment, "volume list", "");
    assert!(shown.contains("\x1b[32mattached\x1b[0m"), "{shown:?}");
    assert!(!environment.ok("volume list").stdout.contains('\x1b'));
    let mut command = environment.program("script");
    let binary = crate::environment::binary().display();
    command
        .args(["-qec", &format!("{binary} volume list"), "/dev/null"])
        .env("NO_COLOR", "1");
    assert!(!ran(&mut command).stdout.contains('\x1b'));
}

#[test]
fn the_json_of_a_volume_has_the_documented_fields() {
    let environment = Environment::with_machine();
    let volumes = environment.ok("volume list -o json").json();
    let fields: Vec<&String> = volumes[0].as_object().unwrap().keys().collect();
    let documented = [
        "attached_to",
        "created",
        "device",
        "driver",
        "format",
        "fs",
        "id",
        "machine_id",
        "modified",
        "name",
        "path",
        "pool",
        "reason",
        "role",
        "size_bytes",
        "size_mb",
        "status",
        "template",
        "used_bytes",
    ];
    assert_eq!(fields, documented);
    assert_eq!(volumes[0]["status"], "attached");
    assert_eq!(volumes[0]["attached_to"], "db1");
    assert_eq!(volumes[0]["device"], "/dev/vda");
    assert_eq!(volumes[0]["role"], "root");
}
