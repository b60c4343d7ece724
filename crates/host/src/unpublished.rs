//! Files that appear when they are whole.
//!
//! A file that is written for somebody else's directory must leave nothing there when it is not
//! finished, whoever is killed. Where the filesystem knows files without a name (`O_TMPFILE` in
//! open(2)) it has none until it is whole, and the kernel removes it with its last user.

use std::fs::File;

use crate::directory::{Directory, FileError, Open};

/// A file that is being written. Dropped before it is published, it is gone.
///
/// Where the filesystem knows no files without a name, such as NFS and FAT, it has a temporary
/// one, which stays behind where the process is killed.
#[derive(Debug)]
#[must_use]
pub struct Unpublished {
    directory: Directory,
    file: File,
    part: Option<String>,
}

impl Unpublished {
    /// Makes an empty file with mode 0600 in a directory, under the name `part` where it has to
    /// have one.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(directory: Directory, part: &str) -> Result<Unpublished, FileError> {
        let (file, part) = match directory.unnamed_file()? {
            Some(file) => (file, None),
            None => (
                directory.file(part, Open::CreateNew)?,
                Some(part.to_owned()),
            ),
        };
        Ok(Unpublished {
            directory,
            file,
            part,
        })
    }

    /// The file, open to read and write.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The directory it is in.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes the instant at which the file is there, whole and durable, where the name is free.
    ///
    /// # Errors
    /// Where it cannot be flushed, or the name is taken ([`FileError::is_already_there`]).
    pub fn publish(mut self, name: &str) -> Result<(), FileError> {
        let Some(part) = &self.part else {
            return self.directory.link(&self.file, name);
        };
        self.directory.publish(part, name)?;
        self.part = None;
        Ok(())
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // Nobody is there to be told; its name says what it is.
            let _ = self.directory.unlink(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_published_and_replaces_nothing() {
        let home = tempfile::tempdir().unwrap();
        let directory = || Directory::open(home.path()).unwrap();
        let new = || Unpublished::create(directory(), "x.part").unwrap();
        let whole = new();
        whole.file().write_all(b"whole").unwrap();
        assert_eq!(directory().names().unwrap(), [""; 0]);
        whole.publish("file").unwrap();
        assert_eq!(directory().read("file", 99).unwrap(), b"whole");
        let error = new().publish("file").unwrap_err();
        assert!(error.is_already_there(), "{error}");
        drop(new());
        assert_eq!(directory().names().unwrap(), ["file"]);
    }

    #[test]
    fn where_it_has_to_have_a_name_it_loses_it_too() {
        let home = tempfile::tempdir().unwrap();
        let directory = || Directory::open(home.path()).unwrap();
        let named = || Unpublished {
            directory: directory(),
            file: directory().file("x.part", Open::CreateNew).unwrap(),
            part: Some("x.part".to_owned()),
        };
        drop(named());
        assert_eq!(directory().names().unwrap(), [""; 0]);
        named().publish("file").unwrap();
        assert!(named().publish("file").unwrap_err().is_already_there());
        assert_eq!(directory().names().unwrap(), ["file"]);
    }
}
