//! The catalogue as its users see it: one file, many processes, records that obey their rules.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests may fail as loudly as tests"
)]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "`|s| s.volumes()` reads better than the path of the method"
)]

mod attachments;
mod fixture;
mod history;
mod image_copies;
mod intents;
mod locks;
mod machines;
mod opening;
mod processes;
mod schema;
mod templates;
mod volumes;
