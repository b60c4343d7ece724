//! Care: whether a volume is sound, what of it nobody uses, and what it takes.
//!
//! No filesystem is ever mounted for it: what a volume holds was written by a guest, and a kernel
//! is not to be asked about that. Programs of this host read the volume as a raw file instead.
//!
//! | module | what is in it |
//! |---|---|
//! | [`check`] | looking for damage, and mending it |
//! | [`trim`] | giving unused blocks back to the host |
//! | [`usage`] | size, used, shared, alone |
//! | `inside` | what a volume holds, by the signs at fixed places of it |
//! | `tools` | what the programs of a filesystem are asked for, and how |
//! | `ext4`, `xfs`, `btrfs` | those programs |

mod btrfs;
pub mod check;
mod ext4;
mod inside;
mod tools;
pub mod trim;
pub mod usage;
mod xfs;

pub use self::check::{Checked, Obstacle, OnDamage, Part, Verdict};
pub use self::trim::Trimmed;
pub use self::usage::{SnapshotUsage, VolumeUsage};
