//! Persistent block storage for virtual machines: the operations.
