//! Which executables are run as drivers, and which never.

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::protocol::EXECUTABLE_PREFIX;

const EXECUTABLE: u32 = 0o111;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;
const LONGEST_NAME: usize = 63;

/// Why an executable is not run.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It depends on where a command is run.
    #[error("{} is not an absolute path", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Unseen {
        /// The path.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// It is not meant to be run.
    #[error("{} is not executable", path.display())]
    NotExecutable {
        /// The path.
        path: PathBuf,
    },
    /// It is neither a program of this system nor a script that names its interpreter; a shell
    /// would take its lines for commands.
    #[error("{} is neither an ELF executable nor a script that begins with `#!`", path.display())]
    NotAProgram {
        /// The path.
        path: PathBuf,
    },
    /// Somebody who is neither root nor us can change it.
    #[error("{} belongs to user {owner}, who is neither root nor who runs this", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Anybody can change it, or put another in its place.
    #[error("anybody can write to {}", path.display())]
    WritableByAll {
        /// The file, or the directory above it.
        path: PathBuf,
    },
}

/// The file that a path leads to, where it may be run: it and all that is above it are nobody's
/// but root's or ours to change.
pub(super) fn trusted(path: &Path) -> Result<PathBuf, Untrusted> {
    if !path.is_absolute() {
        let path = path.to_owned();
        return Err(Untrusted::NotAbsolute { path });
    }
    let unseen = |source| Untrusted::Unseen {
        path: path.to_owned(),
        source,
    };
    let real = path.canonicalize().map_err(unseen)?;
    let meta = real.metadata().map_err(unseen)?;
    if !meta.is_file() {
        return Err(Untrusted::NotAFile { path: real });
    }
    let mode = meta.permissions().mode();
    if mode & EXECUTABLE == 0 {
        return Err(Untrusted::NotExecutable { path: real });
    }
    check_owner(&real, &meta)?;
    if mode & WRITABLE_BY_ALL != 0 {
        return Err(Untrusted::WritableByAll { path: real });
    }
    let mut beginning = [0; 4];
    std::fs::File::open(&real)
        .and_then(|mut file| file.read(&mut beginning))
        .map_err(unseen)?;
    if !(beginning.starts_with(b"#!") || beginning == *b"\x7fELF") {
        return Err(Untrusted::NotAProgram { path: real });
    }
    for directory in real.ancestors().skip(1) {
        let meta = directory.metadata().map_err(unseen)?;
        let mode = meta.permissions().mode();
        // In a sticky directory nobody can replace what is another's.
        if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
            let path = directory.to_owned();
            return Err(Untrusted::WritableByAll { path });
        }
        check_owner(directory, &meta)?;
    }
    Ok(real)
}

fn check_owner(path: &Path, meta: &Metadata) -> Result<(), Untrusted> {
    let owner = meta.uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let path = path.to_owned();
    Err(Untrusted::Owner { path, owner })
}

/// The executable of the driver of that name: the first of its name in `directories`.
pub(crate) fn find(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    if !is_name(name) {
        return None;
    }
    let file = format!("{EXECUTABLE_PREFIX}{name}");
    let mut candidates = directories.iter().map(|directory| directory.join(&file));
    candidates.find(|candidate| candidate.exists())
}

/// The names of all drivers in `directories`, sorted.
pub(crate) fn names(directories: &[PathBuf]) -> Vec<String> {
    let entries = directories.iter().filter_map(|d| d.read_dir().ok());
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let file = entry.ok()?.file_name().into_string().ok()?;
            let name = file.strip_prefix(EXECUTABLE_PREFIX)?;
            is_name(name).then(|| name.to_owned())
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn is_name(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(word)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn driver_in(directory: &Path) -> PathBuf {
        let path = directory.join("sistemo-driver-x");
        let mut file = fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, b"#!/bin/sh\n").unwrap();
        set_mode(&path, 0o755);
        path
    }

    #[test]
    fn what_only_root_or_we_can_change_is_run() {
        let home = tempfile::tempdir().unwrap();
        let path = driver_in(home.path());
        assert_eq!(trusted(&path).unwrap(), path.canonicalize().unwrap());
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(trusted(&link).unwrap(), path.canonicalize().unwrap());
    }

    #[test]
    fn what_anybody_can_change_is_not_run() {
        let home = tempfile::tempdir().unwrap();
        let path = driver_in(home.path());
        set_mode(&path, 0o757);
        let error = trusted(&path).unwrap_err();
        assert!(matches!(error, Untrusted::WritableByAll { .. }), "{error}");
        set_mode(&path, 0o755);

        let inner = home.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let path = driver_in(&inner);
        set_mode(home.path(), 0o777);
        let error = trusted(&path).unwrap_err();
        assert!(matches!(error, Untrusted::WritableByAll { .. }), "{error}");
        set_mode(home.path(), 0o1777);
        trusted(&path).unwrap();
    }

    #[test]
    fn what_is_somebody_elses_is_not_run() {
        let home = tempfile::tempdir().unwrap();
        let path = driver_in(home.path());
        if std::os::unix::fs::chown(&path, Some(4711), None).is_ok() {
            let error = trusted(&path).unwrap_err();
            assert!(
                matches!(error, Untrusted::Owner { owner: 4711, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_executable_is_not_run() {
        let home = tempfile::tempdir().unwrap();
        let path = driver_in(home.path());
        set_mode(&path, 0o644);
        let error = trusted(&path).unwrap_err();
        assert!(matches!(error, Untrusted::NotExecutable { .. }), "{error}");
        let error = trusted(home.path()).unwrap_err();
        assert!(matches!(error, Untrusted::NotAFile { .. }), "{error}");
        let error = trusted(Path::new("sistemo-driver-x")).unwrap_err();
        assert!(matches!(error, Untrusted::NotAbsolute { .. }), "{error}");
        let error = trusted(&home.path().join("gone")).unwrap_err();
        assert!(matches!(error, Untrusted::Unseen { .. }), "{error}");
    }

    #[test]
    fn the_first_directory_wins_and_odd_names_are_no_drivers() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = driver_in(one.path());
        let _ = driver_in(two.path());
        fs::File::create(two.path().join("sistemo-driver-y")).unwrap();
        fs::File::create(two.path().join("sistemo-driver-a b")).unwrap();
        let both = [one.path().to_owned(), two.path().to_owned()];
        assert_eq!(names(&both), ["x", "y"]);
        assert_eq!(find("x", &both), Some(first));
        assert_eq!(find("z", &both), None);
        assert_eq!(find("", &both), None);
        assert_eq!(find("../x", &both), None);
    }
}
