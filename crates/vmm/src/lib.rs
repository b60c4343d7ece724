//! The hypervisor contract and its QEMU implementation.
//!
//! A [`Vmm`] starts a machine from a [`MachineSpec`] in a runtime directory of its own and lets
//! go of it: the machine runs on in its own process, and everything after goes through the
//! sockets in that directory, from whichever process. This crate knows neither the catalogue
//! nor pools; it is handed files and ports.
//!
//! | module | what it holds |
//! |---|---|
//! | [`contract`] | what a machine is made of, what every VMM can do with it |
//! | [`accelerator`] | whether guests can run on the processor itself |
//! | [`qemu`] | QEMU |

pub mod accelerator;
pub mod contract;
mod error;
pub mod qemu;

pub use contract::{
    BootSource, Control, CopyProgress, Credential, Disk, DiskCopy, DiskLocation, DiskOperation,
    DiskSerial, GuestAgent, MachineSpec, Network, Probe, RunStatus, Started, Vmm, VmmEvent,
};
pub use error::VmmError;
pub use qemu::{Qemu, RawAccess};
