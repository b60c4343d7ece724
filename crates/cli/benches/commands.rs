//! Commands beside the plain tools that do the same, in turn, each as a whole process: what the
//! disk and the other users of this machine do to one, they do to the other. Quote the ratio.
//!
//! `cargo bench -p sistemo-cli --bench commands`

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench drives programs as their users do, and prints what it measured"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAIRS: usize = 15;

fn main() {
    let home = tempfile::tempdir_in("/var/tmp").unwrap();
    let data_dir = home.path().join("data");
    let plain = home.path().join("plain");
    std::fs::create_dir(&plain).unwrap();

    println!("{:44} {:>9} {:>9} {:>7}", "", "sistemo", "plain", "ratio");
    let mut number = 0;
    let mut create = |label: &str, filesystem: &str, script: &str| {
        compare(
            label,
            || {
                number += 1;
                let name = format!("{filesystem}-{number}");
                sistemo(
                    &data_dir,
                    &[
                        "volume", "create", "5G", "--name", &name, "--fs", filesystem,
                    ],
                )
            },
            || shell(&plain, script),
        );
    };
    create(
        "create 5G, no filesystem / truncate, sync",
        "none",
        "truncate -s 5G $$.raw && sync $$.raw .",
    );
    create(
        "create 5G, ext4 / truncate, mkfs.ext4, sync",
        "ext4",
        "truncate -s 5G $$.raw && mkfs.ext4 -q -F \
         -E lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1 $$.raw \
         && sync $$.raw .",
    );
    let mut size = 5 * 1024;
    compare(
        "resize / truncate, sync",
        || {
            size += 1;
            sistemo(
                &data_dir,
                &["volume", "resize", "none-1", &format!("{size}M")],
            )
        },
        || shell(&plain, "truncate -s +1M grown.raw && sync grown.raw ."),
    );
    while number < 1000 {
        number += 1;
        let name = format!("many-{number}");
        sistemo(
            &data_dir,
            &["volume", "create", "1M", "--name", &name, "--fs", "none"],
        )();
    }
    for file in 0..1000 {
        std::fs::File::create(plain.join(format!("many-{file}"))).unwrap();
    }
    compare(
        &format!("list {number} volumes / ls -ls 1000 files"),
        || sistemo(&data_dir, &["volume", "list"]),
        || shell(&plain, "ls -ls"),
    );
}

/// Runs both in turn and prints the medians, and the median of the ratios pair by pair.
fn compare<A: FnOnce(), B: FnOnce()>(
    label: &str,
    mut ours: impl FnMut() -> A,
    mut theirs: impl FnMut() -> B,
) {
    ours()();
    theirs()();
    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        pairs.push((timed(ours()), timed(theirs())));
    }
    let ratios = pairs
        .iter()
        .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
        .collect();
    let ms = |times: Vec<f64>| format!("{:.1} ms", median(times) * 1000.0);
    let ours = ms(pairs.iter().map(|(a, _)| a.as_secs_f64()).collect());
    let theirs = ms(pairs.iter().map(|(_, b)| b.as_secs_f64()).collect());
    println!("{label:44} {ours:>9} {theirs:>9} {:>7.2}", median(ratios));
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn sistemo(data_dir: &Path, arguments: &[&str]) -> impl FnOnce() + use<> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
    command.args(arguments).env("SISTEMO_DATA_DIR", data_dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    move || assert!(command.status().unwrap().success(), "{command:?}")
}

fn shell(directory: &Path, script: &str) -> impl FnOnce() + use<> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(directory)
        .stdout(Stdio::null());
    move || assert!(command.status().unwrap().success(), "{command:?}")
}
