//! Unix sockets whose path is too long for `sun_path`.
//!
//! A Unix socket's address holds 108 bytes (unix(7)), and a data directory may be deeper than
//! that. The way round it is a path through the directory's descriptor in /proc/self/fd.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use crate::directory::{Directory, FileError};

/// Connects to the socket `name` in `directory`, however long its path is.
///
/// # Errors
/// What connect(2) says; `NotFound` and `ConnectionRefused` mean that nobody listens.
pub fn connect(directory: &Directory, name: &str) -> Result<UnixStream, FileError> {
    let through = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    UnixStream::connect(through)
        .map_err(|error| FileError::new("connect to", directory.path_of(name), error))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_under_a_long_path_can_be_reached() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("d".repeat(120));
        let (directory, _) = Directory::create(&deep).unwrap();
        assert!(
            UnixListener::bind(deep.join("s")).is_err(),
            "the path should be too long"
        );
        let through = format!("/proc/self/fd/{}/s", directory.as_fd().as_raw_fd());
        let listener = UnixListener::bind(through).unwrap();
        let mut near = connect(&directory, "s").unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"!").unwrap();
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }

    #[test]
    fn a_missing_socket_is_not_found() {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path()).unwrap();
        assert!(connect(&directory, "none").unwrap_err().is_not_found());
    }
}
