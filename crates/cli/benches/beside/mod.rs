//! Two programs in turn, each as a whole process.

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

/// Prints what the columns of [`compare`] are.
pub(crate) fn header() {
    println!("{:52} {:>9} {:>9} {:>7}", "", "sistemo", "plain", "ratio");
}

/// Runs both in turn and prints the medians, and the median of the ratios pair by pair.
pub(crate) fn compare<A: FnOnce(), B: FnOnce()>(
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
    println!("{label:52} {ours:>9} {theirs:>9} {:>7.2}", median(ratios));
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

/// A run of the binary that must succeed.
pub(crate) fn sistemo(data_dir: &Path, arguments: &[&str]) -> impl FnOnce() + use<> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sistemo"));
    command.args(arguments).env("SISTEMO_DATA_DIR", data_dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    move || assert!(command.status().unwrap().success(), "{command:?}")
}

/// A run of a shell line that must succeed.
pub(crate) fn shell(directory: &Path, script: &str) -> impl FnOnce() + use<> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(directory)
        .stdout(Stdio::null());
    move || assert!(command.status().unwrap().success(), "{command:?}")
}
