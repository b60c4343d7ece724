//! How long `machine snapshot` pauses a machine whose three volumes are written at full speed.
//!
//! `cargo bench -p sistemo-cli --bench pause`, as root: it mounts a btrfs and an ext4. The guest
//! is that of the tests, which `scripts/test-assets` makes. The pause is the one that the command
//! reports: from before the processors are held until they run again.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench drives programs as their users do, and prints what it measured"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sistemo_model::Bytes;
use sistemo_testkit::{Action, LoopFilesystem, LoopKind, TinyGuest};

const SNAPSHOTS: usize = 8;
/// What the guest may write between two snapshots.
const BETWEEN: Duration = Duration::from_secs(2);
/// Each disk is written from end to end, over and over, 256 MiB of it, with no wait for the disk.
const WRITERS: &str = "for d in vda vdb vdc; do ( n=0; while :; do n=$((n+1)); \
    yes $d.$n | dd of=/dev/$d bs=1M seek=1 count=256 conv=notrunc iflag=fullblock 2>/dev/null; \
    done ) & done";

fn main() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    println!("the pause of `machine snapshot`, three volumes written at full speed");
    for (driver, kind) in [("btrfs", LoopKind::Btrfs), ("qcow2", LoopKind::Ext4)] {
        let filesystem = LoopFilesystem::new(kind, Bytes::from_mib(32 << 10));
        let machine = Machine::on(
            home.path().join(driver),
            filesystem.path(),
            driver,
            home.path(),
        );
        let mut pauses = machine.pauses();
        pauses.sort_unstable();
        let written = machine.written();
        println!(
            "{driver:6} median {} ms of {pauses:?}; {written} MiB/s written",
            pauses[pauses.len() / 2]
        );
    }
}

/// A data directory whose one machine runs.
struct Machine {
    data: PathBuf,
    started: Instant,
}

impl Machine {
    fn on(data: PathBuf, filesystem: &Path, driver: &str, scratch: &Path) -> Machine {
        let mut machine = Machine {
            data,
            started: Instant::now(),
        };
        let directory = format!("dir_path={}", filesystem.join("pool").display());
        machine.sistemo(&["pool", "add", "bench", driver, "-O", &directory]);
        let guest = TinyGuest::find().expect("scripts/test-assets makes it");
        let image = scratch.join("image.raw");
        let file = File::create(&image).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&guest.disk(&[Action::Script]), 0)
            .unwrap();
        file.write_all_at(WRITERS.as_bytes(), 4096).unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (image, kernel, initrd) = (path(&image), path(&guest.kernel), path(&guest.initrd));
        machine.sistemo(&[
            "image", "import", &image, "--name", "tiny", "--kernel", &kernel, "--initrd", &initrd,
        ]);
        for volume in ["one", "two"] {
            machine.sistemo(&[
                "volume", "create", "1G", "--name", volume, "--fs", "none", "-P", "bench",
            ]);
        }
        machine.sistemo(&[
            "machine",
            "deploy",
            "tiny",
            "--name",
            "m",
            "--storage",
            "1G",
            "-P",
            "bench",
            "--attach",
            "one,two",
            "--no-start",
        ]);
        machine.sistemo(&["machine", "start", "m", "--no-wait"]);
        machine.started = Instant::now();
        machine
    }

    fn pauses(&self) -> Vec<u64> {
        std::thread::sleep(Duration::from_secs(10));
        let mut pauses = Vec::new();
        for _ in 0..SNAPSHOTS {
            std::thread::sleep(BETWEEN);
            let taken = self.sistemo(&["machine", "snapshot", "m", "-o", "json"]);
            let taken: serde_json::Value = serde_json::from_slice(&taken).unwrap();
            pauses.push(taken["pause_ms"].as_u64().unwrap());
        }
        pauses
    }

    fn written(&self) -> u64 {
        let shown = self.sistemo(&["machine", "status", "m", "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
        let io = std::fs::read_to_string(format!("/proc/{}/io", shown["pid"])).unwrap();
        let bytes = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        let bytes: u64 = bytes.unwrap().parse().unwrap();
        bytes / (1 << 20) / self.started.elapsed().as_secs()
    }

    fn sistemo(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
        command.args(arguments).env("SISTEMO_DATA_DIR", &self.data);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        output.stdout
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
        command.args(["machine", "stop", "--force", "m"]);
        let _ = command.env("SISTEMO_DATA_DIR", &self.data).output();
    }
}
