//! The test environment: prerequisites, tiny guests, loop-mounted filesystems.
