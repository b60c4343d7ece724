//! From `machine deploy` to an answering SSH, beside the same QEMU command line started by hand
//! on a copy of the same image.
//!
//! `cargo bench -p sistemo-cli --bench boot`; takes minutes, as a guest without KVM boots in
//! half of one. `SISTEMO_BENCH_IMAGES` may name a data directory whose images are used.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench drives programs as their users do, and prints what it measured"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAIRS: usize = 3;

fn main() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let data_dir = home.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    if let Some(given) = std::env::var_os("SISTEMO_BENCH_IMAGES") {
        for kept in ["images", "kernels"] {
            let from = Path::new(&given).join(kept);
            run(Command::new("cp")
                .arg("-a")
                .arg("--sparse=always")
                .arg(from)
                .arg(&data_dir));
        }
    }
    // The first machine builds the image, shows the command line, and warms the page cache.
    let first = deploy(&data_dir, "first");
    let by_hand = ByHand::learn(&data_dir, home.path());
    delete(&data_dir, "first");
    println!(
        "the first deploy took {:.1} s, building the image where there was none",
        seconds(first)
    );

    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let ours = deploy(&data_dir, "ours");
        delete(&data_dir, "ours");
        let theirs = by_hand.boot();
        let ratio = seconds(ours) / seconds(theirs);
        println!(
            "pair {pair}: deploy {:.1} s, by hand {:.1} s, ratio {ratio:.2}",
            seconds(ours),
            seconds(theirs)
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2}", ratios[ratios.len() / 2]);
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn deploy(data_dir: &Path, name: &str) -> Duration {
    let start = Instant::now();
    run(&mut sistemo(
        data_dir,
        &["machine", "deploy", "debian", "--name", name],
    ));
    start.elapsed()
}

fn delete(data_dir: &Path, name: &str) {
    run(&mut sistemo(
        data_dir,
        &["machine", "stop", "--force", name],
    ));
    run(&mut sistemo(
        data_dir,
        &["machine", "delete", "-y", "--purge", name],
    ));
}

fn sistemo(data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
    command.args(arguments).env("SISTEMO_DATA_DIR", data_dir);
    command
}

fn run(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// The running machine's own command line, to be started again without us.
struct ByHand {
    words: Vec<String>,
    runtime: PathBuf,
    image: PathBuf,
    root: PathBuf,
    port: String,
    key: PathBuf,
}

impl ByHand {
    fn learn(data_dir: &Path, home: &Path) -> ByHand {
        let show = |noun: &[&str]| -> serde_json::Value {
            let output = sistemo(data_dir, noun)
                .args(["-o", "json"])
                .output()
                .unwrap();
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let machine = show(&["machine", "status", "first"]);
        let root = show(&["volume", "show", "first-root"]);
        let image = show(&["image", "show", "debian"]);
        let path = |value: &serde_json::Value| PathBuf::from(value.as_str().unwrap());
        let command = std::fs::read(format!("/proc/{}/cmdline", machine["pid"])).unwrap();
        let runtime = home.join("by-hand");
        std::fs::create_dir(&runtime).unwrap();
        let copy = home.join("by-hand.ext4");
        let words = command
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8(word.to_vec()).unwrap())
            // The machine started by us waits to be told to run; by hand nobody tells it.
            .filter(|word| word != "-S")
            .map(|word| word.replace(root["path"].as_str().unwrap(), copy.to_str().unwrap()))
            .collect();
        ByHand {
            words,
            runtime,
            image: path(&image["path"]),
            root: copy,
            port: machine["ssh"]["port"].to_string(),
            key: data_dir.join("ssh/sistemo_key"),
        }
    }

    fn boot(&self) -> Duration {
        let start = Instant::now();
        run(Command::new("cp")
            .arg("--sparse=always")
            .arg(&self.image)
            .arg(&self.root));
        run(Command::new("truncate").args(["-s", "2G"]).arg(&self.root));
        let mut vmm = Command::new(&self.words[0]);
        vmm.args(&self.words[1..]).current_dir(&self.runtime);
        vmm.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut vmm = vmm.spawn().unwrap();
        while !self.answers() {
            assert!(vmm.try_wait().unwrap().is_none(), "the VMM ended");
            std::thread::sleep(Duration::from_millis(100));
        }
        let time = start.elapsed();
        vmm.kill().unwrap();
        vmm.wait().unwrap();
        time
    }

    fn answers(&self) -> bool {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port, "-i"])
            .arg(&self.key);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "ConnectTimeout=2",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(["root@127.0.0.1", "true"]);
        ssh.stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ssh.status().unwrap().success()
    }
}
