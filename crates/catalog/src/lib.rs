//! The catalogue: what exists, who holds what, what was in flight; and the locks on all of it.
//!
//! One `SQLite` file in the data directory, used by any number of processes at once. Nothing here
//! touches a volume, knows a pool's driver or talks to a VMM.
//!
//! - [`Catalogue::read`] gives a [`Session`]: queries that all see one snapshot.
//! - [`Catalogue::write`] gives a [`Transaction`]: the same queries, and changes that happen
//!   together or not at all. What it returned `Ok` for survives a power cut.
//! - [`Locks`] keeps two commands from working on one object at the same time, for longer than a
//!   transaction lasts.
//! - An [`Intent`] says what its owner was about to do, for whoever finds it after a crash.
//!
//! The schema, the locking order and the protocol of intents are described for people in
//! `docs/reference/catalogue.md`.

mod attachments;
mod connection;
mod error;
mod image_copies;
mod intents;
mod locks;
mod machines;
mod objects;
mod pools;
mod rows;
mod schema;
mod templates;
mod volumes;

pub use attachments::Holding;
pub use connection::{Catalogue, Session, Transaction};
pub use error::{Candidate, CatalogError, Kind};
pub use image_copies::ImageCopy;
pub use intents::{Intent, IntentId};
pub use locks::{LockSet, Lockable, Locks};
pub use machines::RunningProcess;
pub use pools::KnownPool;
pub use templates::Disposable;
