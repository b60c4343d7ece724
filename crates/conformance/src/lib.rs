//! What every driver must do, as laws that are tried on a pool of it.
//!
//! A [`Law`] is one promise of the driver contract and a way to find out whether a pool keeps it.
//! It knows a [`Bench`], never a driver. `sistemo driver check` tries all of them on a driver, and
//! so do the tests of the built-in drivers, with [`laws_hold_for!`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`law`] | what a law is, and what can come out of trying it |
//! | [`bench`](mod@bench) | a place with pools of the driver under test |
//! | [`laws`](mod@laws) | the laws, one room a subject |
//! | [`check()`] | trying all of them |
//! | [`small`] | a filesystem that is soon full |
//! | [`worker`] | the process that is killed half-way |
//! | [`replica`] | what a pool should hold, in memory, and the steps that change both |
//! | [`random`] | numbers that look random and come again with the same seed |
//! | [`testing`] | the laws as tests of a driver |

pub mod bench;
mod check;
mod expectation;
pub mod law;
pub mod laws;
mod material;
pub mod random;
pub mod replica;
pub mod small;
pub mod testing;
pub mod worker;

pub use bench::{Bench, Place};
pub use check::{Counts, Remains, check};
pub use law::{Failure, Law, Need, Outcome, Report, Stop, Verdict};
pub use laws::laws;
pub use worker::Task;
