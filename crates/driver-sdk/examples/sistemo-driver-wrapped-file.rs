//! The `file` driver of Sistemo as an executable: the least that a driver in Rust needs.
//!
//! A driver of one's own implements `Driver` and its pools `Pool`, as `FileDriver` and `FilePool`
//! do in `crates/pools/src/file`, and takes their place here.

use std::process::ExitCode;

use sistemo_driver_sdk::pools::file::FileDriver;

fn main() -> ExitCode {
    sistemo_driver_sdk::run(&FileDriver)
}
