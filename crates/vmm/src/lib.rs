//! The hypervisor contract and its QEMU implementation.
