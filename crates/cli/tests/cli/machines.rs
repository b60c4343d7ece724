//! `sistemo machine …`, as far as it goes without starting one.

use std::fs;

use crate::environment::Environment;

#[test]
fn the_life_of_a_machine_that_never_ran() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    let scene = environment.scene(&[
        "volume create 1G --name pgdata -q -o json",
        "vm list",
        "machine deploy ./disk.raw --name db1 --storage 64M --attach pgdata --no-start",
        "vm ls",
        "vm show db1",
        "machine stop db1",
        "machine set db1 vcpus=4 memory=1G autostart=true",
        "machine rename db1 db2",
        "machine volume detach db2 pgdata",
        "machine volume attach db2 pgdata --read-only",
        "machine status db2",
        "machine logs db2",
        "machine exec db2 -- true",
        "machine pause db2",
        "volume delete pgdata -y",
        "machine volume detach db2 db1-root",
        "machine delete db2",
        "machine delete db2 --preserve-storage",
        "volume list",
    ]);
    // The listing that begins with a made-up used size differs from run to run.
    let scene = scene.split_once("$ sistemo vm list").unwrap().1;
    environment.assert_snapshot(
        "the_life_of_a_machine_that_never_ran",
        &format!("$ sistemo vm list{scene}"),
    );
}

#[test]
fn a_root_volume_that_deploy_made_goes_and_everything_else_stays() {
    let environment = Environment::with_machine();
    environment.ok("volume create 16M --name pgdata");
    environment.ok("machine volume attach db1 pgdata");
    let ran = environment.ok("machine delete db1 -y");
    assert_eq!(ran.stdout, "");
    let (told, kept) = (
        "deleted machine db1 and its root volume db1-root; until ",
        "; kept pgdata\n",
    );
    assert!(
        ran.stderr.starts_with(told) && ran.stderr.ends_with(kept),
        "{}",
        ran.stderr
    );
    assert_eq!(environment.volumes(), [("pgdata".to_owned(), 16 << 20)]);
    assert_eq!(environment.disks(), 2, "one of them in the trash");
    environment.ok("volume trash restore db1-root");
    environment.ok("machine deploy --volume db1-root --name db1 --no-start");
}

#[test]
fn a_preserved_root_can_be_booted_and_then_belongs_to_nobody() {
    let environment = Environment::with_machine();
    environment.ok("machine delete db1 --preserve-storage");
    environment.ok("machine deploy --volume db1-root --name db2 --no-start");
    // Nothing is lost by this delete, so nothing is asked.
    environment.ok("machine delete db2");
    assert_eq!(environment.volumes(), [("db1-root".to_owned(), 64 << 20)]);
}

#[test]
fn a_refused_deploy_leaves_nothing_behind() {
    let environment = Environment::with_machine();
    environment.ok("volume create 16M --name free");
    environment.ok("volume create 16M --name held");
    environment.ok("machine volume attach db1 held");
    environment.ok("volume create 16M --name taken-root");
    let (machines, volumes) = (environment.machines(), environment.volumes());
    let files = environment.volume_files();
    for (status, words, named) in [
        (
            2,
            "",
            "deploy takes an IMAGE, --volume VOLUME or --template MACHINE",
        ),
        (2, "debian --volume free", "'--volume <VOLUME>'"),
        (2, "--volume free --storage 1G", "'--storage <SIZE>'"),
        (
            2,
            "debian --vcpus 0",
            "`0` is not a number of vCPUs between 1 and 255",
        ),
        (
            2,
            "debian --vcpus 10000",
            "`10000` is not a number of vCPUs",
        ),
        (2, "debian --vcpus -1", "`-1` is not a number of vCPUs"),
        (2, "debian --memory 0", "size `0` is zero"),
        (2, "debian --storage 5X", "`5X` is not a size"),
        (2, "debian --expose 70000", "`70000`"),
        (2, "debian --expose a:80", "`a:80`"),
        (2, "debian --vmm firecracker", "'firecracker'"),
        (
            2,
            "debian --name my_db",
            "machine name `my_db` contains `_`",
        ),
        (
            2,
            "debian --name db-",
            "machine name `db-` cannot end with `-`",
        ),
        (2, "'my image'", "image name `my image` contains ` `"),
        (1, "./disk.raw --name db1", "machine db1 already exists"),
        (
            1,
            "./disk.raw --name taken",
            "volume taken-root already exists",
        ),
        (1, "nope", "image nope does not exist"),
        (1, "./nope.raw", "name a file that is there, or an image"),
        (1, "./disk.raw --attach nope", "volume nope does not exist"),
        (
            1,
            "./disk.raw --attach free,held",
            "volume held is attached to db1",
        ),
        (
            1,
            "./disk.raw --attach free --attach free",
            "volume free is named more than once",
        ),
        (1, "--volume held", "volume held is attached to db1"),
        (1, "--volume nope", "volume nope does not exist"),
        (
            1,
            "./disk.raw --memory 127M",
            "127 MB of memory is outside the 128 MB to",
        ),
        (
            1,
            "./disk.raw --memory 4P",
            "4 PB of memory is outside the 128 MB to",
        ),
        (
            1,
            "./disk.raw --storage 15M",
            "needs 16 MB; a root volume of 15 MB is too small",
        ),
        (1, "./disk.raw --pool nope", "pool nope does not exist"),
    ] {
        let line = format!("machine deploy {words} --no-start");
        environment.refused(status, line.trim_end(), named);
    }
    assert_eq!(environment.machines(), machines);
    assert_eq!(environment.volumes(), volumes);
    assert_eq!(environment.volume_files(), files);
    let runtime_directories = fs::read_dir(environment.data_dir().join("machines")).unwrap();
    assert!(runtime_directories.count() <= 1);
}

#[test]
fn a_word_with_an_ending_is_an_image_only_where_there_is_one() {
    let environment = Environment::new();
    environment.disk("disk.img", 16);
    let machine = environment
        .ok("machine deploy disk.img --storage 16M --no-start -o json")
        .json();
    assert_eq!(machine["name"], "disk");
    assert_eq!(machine["status"], "stopped");
    assert_eq!(machine["image"], serde_json::Value::Null);
}

#[test]
fn attaching_names_what_is_in_the_way() {
    let environment = Environment::with_machine();
    environment.disk("disk.raw", 16);
    environment.ok("machine deploy ./disk.raw --name db2 --storage 16M --no-start");
    environment.ok("volume create 16M --name pgdata");
    environment.ok("machine volume attach db1 pgdata");
    for (line, named) in [
        (
            "machine volume attach db2 pgdata",
            "volume pgdata is attached to db1",
        ),
        (
            "machine volume attach db2 db1-root",
            "volume db1-root is attached to db1",
        ),
        (
            "machine volume attach db2 nope",
            "volume nope does not exist",
        ),
        (
            "machine volume attach nope pgdata",
            "machine nope does not exist",
        ),
        (
            "machine volume detach db2 pgdata",
            "volume pgdata is not attached to db2",
        ),
        (
            "machine volume detach db1 db1-root",
            "volume db1-root is the root of db1",
        ),
        (
            "volume delete pgdata -y",
            "volume pgdata is attached to db1",
        ),
    ] {
        environment.refused(1, line, named);
    }
    let refused = environment.refused(1, "volume delete db1-root -y", "attached");
    assert!(
        refused.ends_with("Hint: sistemo machine delete db1 --preserve-storage\n"),
        "{refused}"
    );
    let refused = environment.refused(1, "volume delete pgdata -y", "attached");
    assert!(
        refused.ends_with("Hint: sistemo machine volume detach db1 pgdata\n"),
        "{refused}"
    );
}

#[test]
fn either_all_machines_can_be_deleted_or_none_is() {
    let environment = Environment::with_machine();
    environment.ok("machine deploy ./disk.raw --name db2 --storage 16M --no-start");
    environment.refused(
        1,
        "machine delete db1 nope -y",
        "machine nope does not exist",
    );
    environment.refused(
        1,
        "machine delete db1 db2 db1 -y",
        "machine db1 is named more than once",
    );
    let asked = environment.refused(1, "machine delete db1 db2", "no terminal to ask on");
    assert!(
        asked.contains("machine db1 and its root volume db1-root (64 MB)"),
        "{asked}"
    );
    assert_eq!(environment.machines().len(), 2);
    environment.ok("machine rm db1 db2 -y");
    assert!(environment.machines().is_empty());
    assert!(environment.volumes().is_empty());
}

#[test]
fn a_command_that_cannot_be_run_ends_with_125() {
    let environment = Environment::with_machine();
    environment.refused(125, "machine exec db1 true", "machine db1 is stopped");
    environment.refused(125, "machine exec nope true", "machine nope does not exist");
    environment.refused(
        125,
        "machine exec db1 -- ls -o json",
        "Hint: sistemo machine start db1",
    );
    environment.refused(
        2,
        "machine exec db1",
        "a command to run on the machine is needed",
    );
    environment.refused(
        2,
        "machine exec db1 --",
        "a command to run on the machine is needed",
    );
    environment.refused(1, "machine ssh db1", "machine db1 is stopped");
    environment.refused(1, "machine console db1", "machine db1 is stopped");
}

#[test]
fn machine_set_knows_its_keys() {
    let environment = Environment::with_machine();
    for (words, named) in [
        (
            "colour=red",
            "unknown key `colour`; the keys are vcpus, memory, expose, autostart",
        ),
        ("vcpus=0", "`0` is not a number of vCPUs"),
        ("memory=5X", "`5X` is not a size"),
        ("autostart=maybe", "autostart is true or false, not `maybe`"),
        ("vcpus", "`vcpus` is not KEY=VALUE"),
        ("vcpus=1 vcpus=2", "`vcpus` is set more than once"),
        ("", "KEY=VALUE"),
    ] {
        environment.refused(2, format!("machine set db1 {words}").trim_end(), named);
    }
    environment.refused(1, "machine set db1 vcpus=2 memory=64M", "64 MB of memory");
    let machine = environment.ok("machine status db1 -o json").json();
    assert_eq!(machine["vcpus"], 2);
    let machine = environment.ok("machine set db1 vcpus=3 -o json").json();
    assert_eq!(machine["vcpus"], 3);
}

#[test]
fn the_json_of_a_machine_has_the_documented_fields() {
    let environment = Environment::with_machine();
    let machine = environment.ok("machine status db1 -o json").json();
    let fields: Vec<&String> = machine.as_object().unwrap().keys().collect();
    let documented = [
        "accel",
        "autostart",
        "created",
        "ephemeral",
        "exposed",
        "id",
        "image",
        "mac",
        "memory_mb",
        "modified",
        "name",
        "network",
        "paused_why",
        "pid",
        "root_volume",
        "ssh",
        "status",
        "stopped_how",
        "template",
        "vcpus",
        "vmm",
        "volumes",
    ];
    assert_eq!(fields, documented);
    assert_eq!(machine["root_volume"], "db1-root");
    assert_eq!(machine["volumes"][0]["device"], "/dev/vda");
    assert_eq!(machine["ssh"]["host"], "127.0.0.1");
}

#[test]
fn autostart_and_autostop_have_nothing_to_do_where_nothing_is_to_be_done() {
    let environment = Environment::with_machine();
    for verb in ["autostart", "autostop"] {
        assert_eq!(
            environment.ok(&format!("machine {verb} -o json")).json(),
            serde_json::json!([])
        );
    }
}

#[test]
fn the_clone_of_a_machine() {
    let environment = Environment::with_machine();
    environment.ok("volume create 16M --name pgdata --fs none");
    environment.ok("machine volume attach db1 pgdata");
    environment.ok("machine set db1 expose=8080:80");
    let scene = environment.scene(&[
        "machine clone db1 db2",
        "machine status db2",
        "machine clone db1 db2",
        "machine clone db1 db3 --snapshot none",
        "machine clone db1 Db3",
        "machine clone db1 db3 --no-wait",
    ]);
    // How the data is kept depends on where the tests run.
    let scene = scene.replace("(reflink)", "(copied, 0 B)");
    environment.assert_snapshot("the_clone_of_a_machine", &scene);
}

#[test]
fn the_life_of_a_machine_from_a_template() {
    let environment = Environment::with_machine();
    environment.ok("volume create 16M --name mail --fs none");
    let scene = environment.scene(&[
        "machine deploy --template db1 --name m --attach mail --no-start",
        "machine status m",
        "volume show m-root",
        "volume resize m-root 128M",
        "volume usage m-root",
        "machine snapshot m --name before",
        "machine clone m m2",
        "machine delete m2",
        "volume delete m2-mail --purge -y",
        "machine deploy --template m --no-start",
        "machine delete db1 -y",
        "volume list -q",
        "machine deploy --template db1 --ephemeral --no-start -q",
        "machine snapshot db1-2",
        "machine set db1-2 autostart=true",
        "machine delete m",
        "machine deploy --template db1 --storage 1G",
        "machine deploy --template db1 ./disk.raw",
        "machine deploy --template none",
    ]);
    environment.assert_snapshot("the_life_of_a_machine_from_a_template", &scene);
}
