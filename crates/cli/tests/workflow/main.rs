//! The documented workflow against a real Debian guest, looked at from inside the guest.
//!
//! A guest takes most of a minute to boot where there is no KVM, so the machines are shared: the
//! workflow is one test, and what else needs a real Debian is asked of its machines on the way.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "all of this is a test that drives the binary as its users do"
)]

mod descent;
mod pools;
mod sistemo;
mod snapshots;

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use sistemo::{Sistemo, text};

const GIB: u64 = 1 << 30;

fn kill(pid: &Value) {
    let pid = pid.as_u64().expect("a running machine has a process");
    assert!(
        Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// The process that follows a machine: the one that has its ID on its command line.
fn monitor_of(machine: &Value) -> Value {
    let id = machine["id"].as_str().unwrap();
    let found = std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: u64 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let command =
            std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        let follows = words.contains(&b"monitor".as_slice()) && words.contains(&id.as_bytes());
        follows.then_some(pid)
    });
    found.map_or(Value::Null, Value::from)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn the_documented_workflow_runs_on_a_real_guest() {
    let sistemo = Sistemo::new();
    let port = free_port();

    // The first deploy builds the image; one that comes at the same time waits for it.
    sistemo.run("volume create 5G --name pgdata");
    sistemo.run("volume create 1G --name a-name-of-more-than-20-characters --fs none");
    let mut twin = sistemo.background("machine deploy debian --name twin --no-start");
    sistemo.run(&format!(
        "machine deploy debian --name db1 --storage 3G --expose {port}:22 \
         --attach pgdata,a-name-of-more-than-20-characters"
    ));
    assert!(twin.wait().unwrap().success());
    let mut said = String::new();
    twin.stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(
        sistemo.json("image list").as_array().unwrap().len(),
        1,
        "{said}"
    );
    assert_eq!(sistemo.status("twin")["status"], "stopped");
    sistemo.run("machine delete twin -y --purge");

    sees_its_devices_in_order(&sistemo);
    has_its_own_identity(&sistemo);
    runs_commands_as_they_are_given(&sistemo);
    exposes_ports_on_loopback_only(port);
    refuses_to_change_volumes_under_a_running_machine(&sistemo);
    can_be_paused_and_resumed(&sistemo);
    survives_the_death_of_its_monitor(&sistemo);

    // Write, with a checksum.
    sistemo.guest(
        "db1",
        "mkfs.ext4 -q /dev/vdb && mkdir -p /data && mount /dev/vdb /data",
    );
    sistemo.guest("db1", "head -c 32M /dev/urandom > /data/records && sync");
    let before = sistemo.guest("db1", "sha256sum /data/records");
    snapshots::keeps_clean_filesystems_of_a_machine_that_writes(&sistemo);

    // Grow while the machine is stopped; the guest grows the filesystem.
    sistemo.run("machine stop db1");
    let stopped = sistemo.status("db1");
    assert_eq!(
        (&stopped["status"], &stopped["stopped_how"]),
        (&"stopped".into(), &"clean".into())
    );
    sistemo.run("volume resize pgdata 10GB");
    sistemo.run("machine start db1");
    assert_eq!(
        sistemo.guest("db1", "blockdev --getsize64 /dev/vdb"),
        (10 * GIB).to_string()
    );
    sistemo.guest("db1", "mount /dev/vdb /data && resize2fs /dev/vdb");
    let size = sistemo.guest("db1", "df --output=size -B1 /data | tail -n 1");
    assert!(size.trim().parse::<u64>().unwrap() > 9 * GIB, "{size}");

    // Replace the machine, keep the data. It runs, there is no terminal, and nothing is asked.
    let keys_before = sistemo.guest("db1", "cat /etc/ssh/ssh_host_ed25519_key.pub");
    sistemo.run("machine delete db1 --preserve-storage");
    for volume in ["db1-root", "pgdata", "a-name-of-more-than-20-characters"] {
        assert_eq!(
            sistemo.json(&format!("volume show {volume}"))["status"],
            "available"
        );
    }
    sistemo.run("machine deploy debian --name db2 --attach pgdata");
    sistemo.guest("db2", "mkdir -p /data && mount /dev/vdb /data");
    assert_eq!(sistemo.guest("db2", "sha256sum /data/records"), before);
    assert_ne!(
        sistemo.guest("db2", "cat /etc/ssh/ssh_host_ed25519_key.pub"),
        keys_before
    );

    let who = descent::identity(&sistemo, "db2");

    // A guest that powers itself off, and a VMM that is killed.
    sistemo.output(&["machine", "ssh", "db2", "--", "systemctl poweroff"]);
    assert_eq!(
        sistemo.wait_for_status("db2", "stopped")["stopped_how"],
        "clean"
    );
    descent::makes_machines_of_a_stopped_one(&sistemo, &who, &before);
    sistemo.run("machine delete db2 -y --purge");
    assert_eq!(sistemo.json("volume show pgdata")["status"], "available");
    sistemo.refused("volume show db2-root");

    // Boot from the preserved root: the system of the machine that is gone.
    sistemo.run("machine deploy --volume db1-root --name old");
    assert_eq!(sistemo.guest("old", "hostname"), "old");
    assert_eq!(sistemo.guest("old", "test -d /data && echo there"), "there");
    let keys_after = sistemo.guest("old", "cat /etc/ssh/ssh_host_ed25519_key.pub");
    assert_ne!(
        keys_after, keys_before,
        "another machine has other host keys"
    );
    kill(&sistemo.status("old")["pid"]);
    assert_eq!(
        sistemo.wait_for_status("old", "stopped")["stopped_how"],
        "crashed"
    );
    sistemo.run("machine delete old -y");
    assert_eq!(
        sistemo.json("volume show db1-root")["status"],
        "available",
        "a given root stays"
    );

    // Two files for each of the three volumes, the pool's marker, and nothing stray.
    let files = sistemo.volume_files();
    assert_eq!(files.len(), 3 * 2 + 1, "{files:?}");

    pools::boots_from_a_pool_of_the_qubes_document(&sistemo);
    pools::lives_in_pools_of_several_drivers(&sistemo);
}

fn sees_its_devices_in_order(sistemo: &Sistemo) {
    let sizes = sistemo.guest(
        "db1",
        "lsblk -b -d -n -o NAME,SIZE /dev/vda /dev/vdb /dev/vdc",
    );
    let sizes: Vec<Vec<&str>> = sizes
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let expected = [("vda", 3 * GIB), ("vdb", 5 * GIB), ("vdc", GIB)];
    for (line, (name, size)) in sizes.iter().zip(expected) {
        assert_eq!(*line, [name, size.to_string().as_str()]);
    }
    let long = sistemo.json("volume show a-name-of-more-than-20-characters");
    let digits: String = long["id"]
        .as_str()
        .unwrap()
        .replace('-', "")
        .chars()
        .take(20)
        .collect();
    let by_id =
        |name: &str| sistemo.guest("db1", &format!("readlink -f /dev/disk/by-id/virtio-{name}"));
    assert_eq!(by_id("pgdata"), "/dev/vdb");
    assert_eq!(by_id(&digits), "/dev/vdc");
    assert_eq!(by_id("db1-root"), "/dev/vda");
    let root = sistemo.guest("db1", "df --output=size -B1 / | tail -n 1");
    assert!(
        root.trim().parse::<u64>().unwrap() > 2 * GIB + GIB / 2,
        "the root fills 3 GB: {root}"
    );
}

fn has_its_own_identity(sistemo: &Sistemo) {
    let id = sistemo.status("db1")["id"]
        .as_str()
        .unwrap()
        .replace('-', "");
    assert_eq!(sistemo.guest("db1", "cat /etc/machine-id"), id);
    assert_eq!(sistemo.guest("db1", "hostname"), "db1");
    let failed = sistemo.guest("db1", "systemctl --failed --no-legend");
    assert_eq!(failed, "", "no unit of the guest has failed");
    assert!(
        sistemo.run("machine logs db1").contains("db1 login:"),
        "the console is logged"
    );
}

fn runs_commands_as_they_are_given(sistemo: &Sistemo) {
    let exec =
        |arguments: &[&str]| sistemo.output(&[&["machine", "exec", "db1"], arguments].concat());
    let said = exec(&["printf", "%s|", "two words", "$HOME", "'", "-v"]);
    assert_eq!(text(&said.stdout), "two words|$HOME|'|-v|");
    assert_eq!(exec(&["--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(exec(&["sh", "-c", "exit 255"]).status.code(), Some(255));
    assert_eq!(
        exec(&["sh", "-c", "kill -9 $$"]).status.code(),
        Some(128 + 9)
    );
    let missing = sistemo.output(&["machine", "exec", "nobody", "true"]);
    assert_eq!(missing.status.code(), Some(125));
}

fn exposes_ports_on_loopback_only(port: u16) {
    let mut banner = [0; 4];
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-");
    let listening = text(&Command::new("ss").args(["-ltnH"]).output().unwrap().stdout);
    let lines: Vec<&str> = listening
        .lines()
        .filter(|line| line.contains(&format!(":{port} ")))
        .collect();
    assert!(!lines.is_empty(), "nothing listens on {port}: {listening}");
    assert!(
        lines.iter().all(|line| line.contains("127.0.0.1:")),
        "{lines:?}"
    );
}

fn refuses_to_change_volumes_under_a_running_machine(sistemo: &Sistemo) {
    for line in [
        "volume resize pgdata 6G",
        "volume rename pgdata other",
        "machine volume detach db1 pgdata",
        "machine set db1 vcpus=1",
        "machine rename db1 other",
    ] {
        let said = sistemo.refused(line);
        assert!(
            said.contains("Hint: sistemo machine stop db1"),
            "`sistemo {line}`: {said}"
        );
    }
    assert!(
        sistemo
            .refused("volume delete pgdata -y")
            .contains("attached to db1")
    );
    assert_eq!(sistemo.json("volume show pgdata")["size_bytes"], 5 * GIB);
}

fn can_be_paused_and_resumed(sistemo: &Sistemo) {
    sistemo.run("machine pause db1");
    let paused = sistemo.status("db1");
    assert_eq!(
        (&paused["status"], &paused["paused_why"]),
        (&"paused".into(), &"requested".into())
    );
    sistemo.run("machine resume db1");
    assert_eq!(sistemo.status("db1")["status"], "running");
    assert_eq!(sistemo.guest("db1", "echo on"), "on");
}

fn survives_the_death_of_its_monitor(sistemo: &Sistemo) {
    let machine = sistemo.status("db1");
    let monitor = monitor_of(&machine);
    kill(&monitor);
    assert_eq!(sistemo.status("db1")["status"], "running");
    assert_eq!(sistemo.guest("db1", "echo on"), "on");
    let deadline = Instant::now() + Duration::from_secs(10);
    while monitor_of(&machine).is_null() {
        assert!(
            Instant::now() < deadline,
            "another monitor follows the machine"
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(monitor_of(&machine), monitor);
}
