//! `sistemo volume export`, `volume import` and `image create`: files of other formats than raw.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use sistemo_testkit::{Requirement, met};

use crate::environment::{Environment, binary, ran};

/// An environment with a bare volume `data` of 16 MB that holds a word.
fn with_data() -> Environment {
    let environment = Environment::new();
    environment.ok("volume create 16M --name data --fs none");
    let shown = environment.ok("volume show data -o json").json();
    let path = shown["path"].as_str().unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"a word", 5 << 20).unwrap();
    environment
}

fn sha256(environment: &Environment, volume: &str) -> String {
    environment.ok(&format!("volume export {volume} sum.raw"));
    let file = environment.home().join("sum.raw");
    let told = ran(environment.program("/usr/bin/sha256sum").arg(&file));
    fs::remove_file(file).unwrap();
    told.stdout.split(' ').next().unwrap().to_owned()
}

#[test]
fn a_volume_goes_to_a_file_of_a_format_and_comes_back_checked() {
    let environment = with_data();
    let sum = sha256(&environment, "data");
    let written = environment
        .ok("volume export data data.qcow2 --checksum -o json")
        .json();
    assert_eq!(written["format"], "qcow2");
    assert_eq!(written["size_bytes"], 16 << 20);
    assert_eq!(written["sha256"], sum);
    let told = environment.ok("volume export data data.vdi --checksum");
    let expected = format!("exported data to data.vdi: 16 MB as vdi, SHA-256 {sum}\n");
    assert!(told.stderr.ends_with(&expected), "{}", told.stderr);
    // As other systems write it.
    let capitals = sum.to_uppercase();
    let back = environment
        .ok(&format!(
            "volume import data.qcow2 --name back --sha256 {capitals} -o json"
        ))
        .json();
    assert_eq!(
        (&back["size_mb"], &back["sha256"]),
        (&16.into(), &sum.into())
    );
    let plain = environment.ok("volume import data.vdi --name plain -o json");
    assert_eq!(plain.json()["sha256"], serde_json::Value::Null);
    assert_eq!(sha256(&environment, "back"), sha256(&environment, "plain"));

    // A name that tells no format is not passed over in silence.
    let told = environment.ok("volume export data data.vhd").stderr;
    assert!(
        told.ends_with("exported data to data.vhd: 16 MB as raw\n"),
        "{told}"
    );
    let told = environment
        .ok("volume import data.vhd --name guessed")
        .stderr;
    assert!(told.ends_with("imported guessed as raw\n"), "{told}");

    let other = "0".repeat(64);
    let line = format!("volume import data.vdi --name x --sha256 {other}");
    environment.refused(1, &line, "instead of 0000");
    environment.refused(2, "volume import data.vdi --name x --sha256 12", "12");
    let told = environment.run(&format!("{line} -o json")).error();
    assert_eq!(told["code"], "checksum-differs");
}

#[test]
fn a_file_that_is_not_what_it_should_be_is_named_with_its_fault() {
    let environment = with_data();
    environment.file("text.qcow2", "text");
    let told = environment.refused(1, "volume import text.qcow2 --name x", "text.qcow2");
    assert!(told.contains("text.qcow2 is no qcow2 file"), "{told}");
    assert!(
        told.contains("Hint: name its format with --format"),
        "{told}"
    );
    environment.ok("volume import text.qcow2 --name text --format raw");

    environment.file("secret", "secret");
    let mut create = environment.program("/usr/bin/qemu-img");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "secret"];
    assert_eq!(ran(create.args(words).args(["over.qcow2", "1M"])).status, 0);
    for line in [
        "volume import over.qcow2 --name x",
        "image import over.qcow2 --name x",
    ] {
        let told = environment.refused(1, line, "over.qcow2 reads another file, secret");
        assert!(!told.contains("qemu-img failed"), "{told}");
    }
    let told = environment.run("volume import over.qcow2 --name x -o json");
    assert_eq!(told.error()["code"], "disk-file-unusable");
    environment.file("empty.vhdx", "");
    environment.refused(
        1,
        "volume import empty.vhdx --name x",
        "empty.vhdx is empty",
    );
}

#[test]
fn an_image_is_made_of_a_volume() {
    let environment = with_data();
    environment.ok("volume snapshot create data --name one");
    let made = environment.ok("image create --from-volume data --name golden -o json");
    assert_eq!(made.json()["source"], "volume");
    assert_eq!(made.json()["volume"], "data");
    environment.ok("image create --from-volume data --snapshot one --name old");
    let shown = environment.ok("image show old").stdout;
    assert!(shown.contains("one"), "{shown}");
    let listed = environment.ok("image list").stdout;
    assert!(listed.contains("volume (data)"), "{listed}");
    environment.ok("machine deploy golden --name m --no-start");
    environment.refused(1, "image create --from-volume data --name old", "image old");
    environment.refused(1, "image create --from-volume none --name x", "volume none");
    environment.refused(2, "image create --name x", "--from-volume");
}

/// An environment whose qemu-img finds nothing wrong, and never comes to the end of anything.
struct Endless {
    environment: Environment,
    programs: PathBuf,
}

impl Endless {
    fn new() -> Endless {
        let environment = with_data();
        let programs = environment.home().join("programs");
        fs::create_dir(&programs).unwrap();
        let script = "#!/bin/sh\n\
            [ \"$1\" = check ] && exit\n\
            echo something >/dev/fd/3\n\
            echo $$ >\"$HOME/pid.part\"\n\
            mv \"$HOME/pid.part\" \"$HOME/pid\"\n\
            exec sleep 300\n";
        // Written by another process: see `Ordinary`.
        let mut shell = environment.program("/bin/sh");
        let line = "cat >programs/qemu-img; chmod +x programs/qemu-img";
        assert_eq!(ran(shell.args(["-c", line]).write_stdin(script)).status, 0);
        Endless {
            environment,
            programs,
        }
    }

    /// Runs a command until qemu-img is in the midst of its work, ends it by a signal, and waits
    /// until qemu-img is gone too.
    fn interrupt(&self, line: &str, signal: &str) {
        let home = self.environment.home();
        let old = std::env::var("PATH").unwrap();
        let mut shell = self.environment.program("/bin/sh");
        let script = format!(
            "PATH='{}':\"$PATH\" '{}' {line} & \
            while ! [ -e pid ]; do sleep 0.01; done; \
            kill -{signal} $!; wait $!; echo $?",
            self.programs.display(),
            binary().display()
        );
        let ended = ran(shell.args(["-c", &script]).env("PATH", old));
        let status: i32 = ended.stdout.lines().last().unwrap().parse().unwrap();
        assert!(status > 128, "{line}: {}", ended.stderr);
        let pid = fs::read_to_string(home.join("pid")).unwrap();
        let process = PathBuf::from("/proc").join(pid.trim());
        let deadline = Instant::now() + Duration::from_secs(30);
        while process.exists() {
            assert!(Instant::now() < deadline, "{line}: qemu-img lives on");
            thread::sleep(Duration::from_millis(10));
        }
        fs::remove_file(home.join("pid")).unwrap();
    }
}

#[test]
fn what_is_interrupted_leaves_nothing_and_no_program_behind() {
    if !met(&[Requirement::Program("setsid")]) {
        return;
    }
    let scene = Endless::new();
    let environment = &scene.environment;
    environment.ok("volume export data source.qcow2");
    for signal in ["TERM", "KILL"] {
        // What was deleted before is in the trash.
        let before = environment.volume_files();
        let target = environment.home().join("target");
        fs::create_dir(&target).unwrap();
        scene.interrupt("volume export data target/data.qcow2", signal);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{signal}");
        fs::remove_dir(&target).unwrap();

        scene.interrupt("volume import source.qcow2 --name new", signal);
        let told = environment.ok("volume list");
        assert!(!told.stdout.contains("new"), "{}", told.stdout);
        assert_eq!(environment.volume_files(), before, "{signal}");
        environment.ok("volume import source.qcow2 --name new");
        environment.ok("volume delete new -y");

        scene.interrupt("image import source.qcow2 --name new", signal);
        environment.ok("image import source.qcow2 --name new");
        environment.ok("image delete new -y");
        let images = environment.data_dir().join("images");
        assert_eq!(fs::read_dir(images).unwrap().count(), 0, "{signal}");
    }
}
