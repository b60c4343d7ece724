//! Makes an executable that Sistemo can use out of a driver in Rust.
//!
//! A driver is an implementation of [`Driver`], as those of Sistemo itself are; its pools keep
//! the promises of [`pools::contract`]. This crate speaks the protocol for it:
//!
//! ```no_run
//! # use sistemo_driver_sdk::pools::file::FileDriver as MyDriver;
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     sistemo_driver_sdk::run(&MyDriver)
//! }
//! ```
//!
//! Called `sistemo-driver-NAME` and put into `~/.sistemo/drivers` or a directory on PATH, the
//! executable is the driver NAME.
//!
//! # The pool's directory
//!
//! Each request is a process of its own, in which the pool is opened anew: with
//! [`FirstUse::Allowed`] where Sistemo uses the pool for the first time, and else with
//! [`FirstUse::Known`]. The pool is in the very directory that Sistemo marked, under the same name
//! and of the same catalogue, so a driver that checks the marker, as all of Sistemo's own do,
//! finds it as it should be. A pool of a driver that is part of Sistemo can therefore become one
//! of the same driver as an executable, and the other way round.
//!
//! # What does not pass through
//!
//! - Progress, and a pool's own filesystem.
//! - Snapshots of which a pool cannot say where a program can read them.
//! - The disk of a running machine: a volume in a qcow2 file is not kept as it is meanwhile.

mod answer;
mod refusal;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use sistemo_pools::external::protocol::{ErrorAnswer, ErrorBody, ErrorCode, PROTOCOL, Request};

pub use sistemo_host as host;
pub use sistemo_model as model;
pub use sistemo_pools as pools;
pub use sistemo_pools::config::{Keeping, PoolConfig};
pub use sistemo_pools::contract::Location;
pub use sistemo_pools::{Driver, DriverInfo, FirstUse, Pool, PoolError};

use crate::refusal::body_of;

/// No request comes near this.
const LONGEST_REQUEST: u64 = 1 << 20;

/// Answers the request on standard input, and says how the process is to end.
pub fn run(driver: &dyn Driver) -> ExitCode {
    let answered = read().and_then(|request| answer::answer(driver, request));
    let (answer, code) = match answered {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (text(&ErrorAnswer { error }), ExitCode::FAILURE),
    };
    let mut stdout = io::stdout().lock();
    // Who asked may be gone; what was done stays done.
    let _ = stdout.write_all(answer.as_bytes());
    let _ = stdout.flush();
    code
}

fn read() -> Result<Request, ErrorBody> {
    let wrong = |message: String| ErrorBody {
        code: ErrorCode::Failed,
        message,
    };
    let mut text = String::new();
    let mut stdin = io::stdin().lock().take(LONGEST_REQUEST);
    stdin
        .read_to_string(&mut text)
        .map_err(|error| wrong(format!("the request cannot be read: {error}")))?;
    let request: Request = serde_json::from_str(&text).map_err(|error| ErrorBody {
        code: ErrorCode::Unsupported,
        message: format!("the request is not understood: {error}"),
    })?;
    if request.protocol == PROTOCOL {
        Ok(request)
    } else {
        Err(wrong(format!(
            "version {} of the protocol is not known, only {PROTOCOL} is",
            request.protocol
        )))
    }
}

fn text(answer: &impl Serialize) -> String {
    // None of the answers has a key that is no text, nor a number that JSON lacks.
    serde_json::to_string(answer).unwrap_or_default()
}

fn open(
    driver: &dyn Driver,
    request: &Request,
    first_use: FirstUse,
) -> Result<Arc<dyn Pool>, ErrorBody> {
    let Some(pool) = &request.pool else {
        return Err(ErrorBody {
            code: ErrorCode::Failed,
            message: "the request names no pool".to_owned(),
        });
    };
    let directory = pool.options.get(pools::external::protocol::DIRECTORY);
    let config = PoolConfig {
        name: pool.pool.clone(),
        driver: driver.info().name,
        directory: directory.map(Into::into),
        options: pool.options.clone(),
        keeping: Keeping::default(),
    };
    driver
        .open(&config, pool.catalogue, first_use)
        .map_err(|error| body_of(&error))
}
