//! External drivers: executables that anyone can write, in any language.
//!
//! A driver is an executable `sistemo-driver-NAME` in `drivers/` of the data directory or on
//! PATH, or any other that a pool's `class` names by its absolute path. Each operation is one
//! process, which is told what to do in its environment and on its standard input, and answers
//! on its standard output: see [`protocol`], and `docs/reference/driver-protocol.md`.
//!
//! A driver is run as whoever runs this, and so can do what he can: what is checked here keeps
//! mistakes from harm, not malice. Only an executable that nobody else can change is run
//! ([`Untrusted`]), with none of our environment, in a process group that is killed where it
//! takes too long or prints without end, and every answer is checked before anything is made of
//! it. What is wrong is a [`DriverFault`], and nothing is changed by it but what the driver
//! itself did.
//!
//! | file | what is in it |
//! |---|---|
//! | `protocol` | the messages |
//! | `executable` | which executables are run |
//! | `call` | one process, one request, one answer |
//! | `locks` | what keeps a recovery off a driver that outlived who called it |
//! | `driver` | what a driver says of itself |
//! | `pool` · `draft` · `powers` | the contract, on top of the protocol |
//! | `content` | a volume's bytes, where a driver says that they are |

mod call;
mod content;
mod draft;
mod driver;
mod executable;
mod fault;
mod locks;
mod pool;
mod powers;
pub mod protocol;

pub use self::call::Limits;
pub use self::driver::ExternalDriver;
pub use self::executable::Untrusted;
pub use self::fault::{DriverFault, UnusableDriver, in_words};
pub use self::pool::ExternalPool;

pub(crate) use self::executable::{find, names};
