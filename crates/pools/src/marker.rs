//! How a pool is recognised.
//!
//! Every pool's directory holds a file `.sistemo-pool` that names the pool and the catalogue it
//! belongs to. A directory without it is not the pool, most likely the empty mount point of a
//! disk that is not there, and nothing is ever written into it; one with another's is refused.

use std::path::Path;

use rustix::fs::{Access, AtFlags};
use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError};
use sistemo_model::{CatalogueId, PoolName};

use crate::{PoolError, record};

/// The marker's file name.
pub const MARKER: &str = ".sistemo-pool";

/// Whether a pool may be made where there is none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstUse {
    /// The pool was never used: its directory and its marker may be made.
    Allowed,
    /// The catalogue knows the pool: without its marker it is not available.
    Known,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    pool: PoolName,
    catalogue: CatalogueId,
}

/// Opens the directory of a pool and checks its marker.
///
/// On first use the last component of `path` and the marker are made where they are missing. Of
/// several processes that do so at once one makes the marker and the others find it. A crash in
/// the middle leaves a directory without a marker, on which the next first use goes on, and
/// perhaps a small file whose name begins with the marker's.
pub(crate) fn enter(
    path: &Path,
    pool: &PoolName,
    catalogue: CatalogueId,
    first_use: FirstUse,
) -> Result<Directory, PoolError> {
    enter_prepared(path, pool, catalogue, first_use, |_| Ok(()))
}

/// Opens the directory of a pool as [`enter`] does, and has it prepared by the driver before it
/// is marked: looked at whether the driver can work there, or made so.
///
/// What is another's is not prepared. Where preparing fails, the directory is as it was before,
/// so far as `prepare` took back what it did.
pub(crate) fn enter_prepared(
    path: &Path,
    pool: &PoolName,
    catalogue: CatalogueId,
    first_use: FirstUse,
    mut prepare: impl FnMut(&Directory) -> Result<(), PoolError>,
) -> Result<Directory, PoolError> {
    let unavailable = |source| unavailable(pool, path, source);
    if first_use == FirstUse::Known {
        let directory = Directory::open(path).map_err(unavailable)?;
        check(&directory, pool, catalogue)?;
        prepare(&directory)?;
        return Ok(directory);
    }
    let (directory, made) = Directory::create(path).map_err(unavailable)?;
    let entered = match check(&directory, pool, catalogue) {
        Err(PoolError::NoMarker { .. }) => {
            prepare(&directory).and_then(|()| make(&directory, pool, catalogue))
        }
        Ok(()) => prepare(&directory),
        Err(error) => Err(error),
    };
    if let Err(error) = entered {
        if made == Changed::Yes {
            // It stays where another process has put something into it meanwhile.
            let _ = std::fs::remove_dir(path);
        }
        return Err(error);
    }
    Ok(directory)
}

fn make(directory: &Directory, pool: &PoolName, catalogue: CatalogueId) -> Result<(), PoolError> {
    let marker = Marker {
        pool: pool.clone(),
        catalogue,
    };
    // A name of its own for each process: a shared one could be cut short under another's rename.
    let temporary = scratch_name();
    let published = record::encode(&marker)
        .map_err(|error| FileError::new("encode", directory.path_of(MARKER), error))
        .and_then(|text| directory.replace_unflushed(&temporary, &text))
        .and_then(|()| directory.publish(&temporary, MARKER));
    let Err(error) = published else {
        return Ok(());
    };
    // Where this fails too, a small file stays that nothing looks at.
    let _ = directory.unlink(&temporary);
    if error.is_already_there() {
        check(directory, pool, catalogue)
    } else {
        Err(unavailable(pool, directory.path(), error))
    }
}

/// Checks, without making anything, that a pool which was never used could be: that its
/// directory can be written and has nobody else's marker, or can be made.
///
/// # Errors
/// As a first use would have.
pub fn check_first_use(
    path: &Path,
    pool: &PoolName,
    catalogue: CatalogueId,
) -> Result<(), PoolError> {
    let place = match Directory::open(path) {
        Ok(directory) => match check(&directory, pool, catalogue) {
            Ok(()) | Err(PoolError::NoMarker { .. }) => directory,
            Err(error) => return Err(error),
        },
        Err(error) if error.is_not_found() => {
            let parent = path.parent().unwrap_or(path);
            Directory::open(parent).map_err(|source| unavailable(pool, path, source))?
        }
        Err(error) => return Err(unavailable(pool, path, error)),
    };
    check_writable(&place, pool, path)
}

/// Takes the marker away from the directory of a pool that is no more; one that is not there is
/// no error. The directory stays.
///
/// # Errors
/// Where the directory cannot be entered or written, or has another's marker.
pub fn remove(path: &Path, pool: &PoolName, catalogue: CatalogueId) -> Result<Changed, PoolError> {
    let unavailable = |source| unavailable(pool, path, source);
    let directory = Directory::open(path).map_err(unavailable)?;
    match check(&directory, pool, catalogue) {
        Ok(()) => directory.remove(MARKER).map_err(unavailable),
        Err(PoolError::NoMarker { .. }) => Ok(Changed::No),
        Err(error) => Err(error),
    }
}

/// Checks that files can be made in a directory.
pub(crate) fn check_writable(
    directory: &Directory,
    pool: &PoolName,
    path: &Path,
) -> Result<(), PoolError> {
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(directory, ".", wanted, AtFlags::EACCESS).map_err(|error| {
        let source = FileError::new("write to", directory.path(), error);
        unavailable(pool, path, source)
    })
}

/// Checks that an open directory holds the marker of this pool and this catalogue.
pub(crate) fn check(
    directory: &Directory,
    pool: &PoolName,
    catalogue: CatalogueId,
) -> Result<(), PoolError> {
    let text = match directory.read(MARKER, record::LIMIT) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => {
            return Err(PoolError::NoMarker {
                pool: pool.clone(),
                directory: directory.path().to_owned(),
            });
        }
        Err(error) => return Err(unavailable(pool, directory.path(), error)),
    };
    let marker: Marker = record::decode(&text).map_err(|source| PoolError::BadMarker {
        pool: pool.clone(),
        directory: directory.path().to_owned(),
        source,
    })?;
    if marker.catalogue != catalogue {
        return Err(PoolError::OtherCatalogue {
            pool: pool.clone(),
            directory: directory.path().to_owned(),
            found: marker.catalogue,
        });
    }
    if marker.pool != *pool {
        return Err(PoolError::OtherPool {
            pool: pool.clone(),
            directory: directory.path().to_owned(),
            found: marker.pool,
        });
    }
    Ok(())
}

/// A name for a file that nothing looks at, nobody else's.
#[must_use]
pub fn scratch_name() -> String {
    format!("{MARKER}.{}.new", CatalogueId::random().simple())
}

/// Whether a file in a pool is its marker, or the rest of making one.
pub(crate) fn is_marker(name: &str) -> bool {
    name.strip_prefix(MARKER)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

pub(crate) fn unavailable(pool: &PoolName, directory: &Path, source: FileError) -> PoolError {
    PoolError::Unavailable {
        pool: pool.clone(),
        directory: directory.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pool() -> PoolName {
        "default".parse().unwrap()
    }

    #[test]
    fn first_use_makes_the_directory_and_the_marker() {
        let home = tempfile::tempdir().unwrap();
        let (path, catalogue) = (home.path().join("volumes"), CatalogueId::random());
        for first_use in [FirstUse::Allowed, FirstUse::Allowed, FirstUse::Known] {
            let directory = enter(&path, &pool(), catalogue, first_use).unwrap();
            assert_eq!(directory.files().unwrap(), [MARKER]);
        }
    }

    #[test]
    fn first_use_makes_only_the_last_component() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("not/there");
        let error = enter(&path, &pool(), CatalogueId::random(), FirstUse::Allowed).unwrap_err();
        assert!(matches!(error, PoolError::Unavailable { .. }), "{error}");
        assert!(!home.path().join("not").exists());
    }

    #[test]
    fn a_known_pool_without_its_marker_is_unavailable_and_stays_untouched() {
        let home = tempfile::tempdir().unwrap();
        let mount_point = home.path().join("mnt");
        std::fs::create_dir(&mount_point).unwrap();
        let catalogue = CatalogueId::random();
        let error = enter(&mount_point, &pool(), catalogue, FirstUse::Known).unwrap_err();
        assert!(matches!(error, PoolError::NoMarker { .. }), "{error}");
        assert_eq!(std::fs::read_dir(&mount_point).unwrap().count(), 0);

        let gone = home.path().join("gone");
        let error = enter(&gone, &pool(), catalogue, FirstUse::Known).unwrap_err();
        assert!(matches!(error, PoolError::Unavailable { .. }), "{error}");
        assert!(!gone.exists());
    }

    #[test]
    fn what_cannot_be_prepared_is_not_marked() {
        let home = tempfile::tempdir().unwrap();
        let (path, catalogue) = (home.path().join("volumes"), CatalogueId::random());
        let unsuited = |directory: &Directory| {
            Err(PoolError::NoMarker {
                pool: pool(),
                directory: directory.path().to_owned(),
            })
        };
        let open = |prepare: &dyn Fn(&Directory) -> Result<(), PoolError>| {
            enter_prepared(&path, &pool(), catalogue, FirstUse::Allowed, prepare)
        };
        open(&unsuited).unwrap_err();
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        open(&unsuited).unwrap_err();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        let directory = open(&|_| Ok(())).unwrap();
        open(&unsuited).unwrap_err();
        assert_eq!(directory.files().unwrap(), [MARKER]);
    }

    #[test]
    fn anothers_marker_is_refused_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let (path, owner) = (home.path().join("volumes"), CatalogueId::random());
        enter(&path, &pool(), owner, FirstUse::Allowed).unwrap();
        for first_use in [FirstUse::Allowed, FirstUse::Known] {
            let stranger = enter(&path, &pool(), CatalogueId::random(), first_use).unwrap_err();
            assert!(
                matches!(&stranger, PoolError::OtherCatalogue { found, .. } if *found == owner),
                "{stranger}"
            );
            let other = enter(&path, &"fast".parse().unwrap(), owner, first_use).unwrap_err();
            assert!(
                matches!(&other, PoolError::OtherPool { found, .. } if *found == pool()),
                "{other}"
            );
        }
        enter(&path, &pool(), owner, FirstUse::Known).unwrap();
    }

    #[test]
    fn an_unreadable_marker_is_refused_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let catalogue = CatalogueId::random();
        let directory = enter(home.path(), &pool(), catalogue, FirstUse::Allowed).unwrap();
        for text in ["", "{}", "qubes\n", r#"{"version": 2}"#] {
            directory.replace(MARKER, text.as_bytes()).unwrap();
            let error = enter(home.path(), &pool(), catalogue, FirstUse::Allowed).unwrap_err();
            assert!(matches!(error, PoolError::BadMarker { .. }), "{error}");
            assert_eq!(directory.read(MARKER, 99).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn whether_a_first_use_would_work_is_told_without_making_anything() {
        let home = tempfile::tempdir().unwrap();
        let catalogue = CatalogueId::random();
        let path = home.path().join("volumes");
        let check = |path: &Path, catalogue| check_first_use(path, &pool(), catalogue);
        check(&path, catalogue).unwrap();
        assert!(!path.exists());
        assert!(check(&path.join("deeper"), catalogue).is_err());
        std::fs::create_dir(&path).unwrap();
        check(&path, catalogue).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        enter(&path, &pool(), catalogue, FirstUse::Allowed).unwrap();
        check(&path, catalogue).unwrap();
        let stranger = check(&path, CatalogueId::random()).unwrap_err();
        assert!(
            matches!(stranger, PoolError::OtherCatalogue { .. }),
            "{stranger}"
        );
        let file = path.join(MARKER);
        let error = check(&file, catalogue).unwrap_err();
        assert!(matches!(error, PoolError::Unavailable { .. }), "{error}");
    }

    #[test]
    fn only_the_own_marker_is_taken_away() {
        let home = tempfile::tempdir().unwrap();
        let owner = CatalogueId::random();
        let directory = enter(home.path(), &pool(), owner, FirstUse::Allowed).unwrap();
        assert!(remove(home.path(), &pool(), CatalogueId::random()).is_err());
        assert!(remove(home.path(), &"fast".parse().unwrap(), owner).is_err());
        assert_eq!(directory.files().unwrap(), [MARKER]);
        assert_eq!(remove(home.path(), &pool(), owner).unwrap(), Changed::Yes);
        assert_eq!(remove(home.path(), &pool(), owner).unwrap(), Changed::No);
        assert!(directory.files().unwrap().is_empty());
    }

    #[test]
    fn many_first_uses_at_once_agree_on_one_owner() {
        for _ in 0..20 {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("volumes");
            let owners: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            let catalogue = CatalogueId::random();
                            enter(&path, &pool(), catalogue, FirstUse::Allowed).map(|_| catalogue)
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let winners: Vec<_> = owners.iter().flatten().collect();
            assert_eq!(winners.len(), 1, "{owners:?}");
            for refused in owners.iter().filter_map(|owner| owner.as_ref().err()) {
                assert!(
                    matches!(refused, PoolError::OtherCatalogue { found, .. } if found == winners[0]),
                    "{refused}"
                );
            }
            let directory = Directory::open(&path).unwrap();
            assert_eq!(directory.files().unwrap(), [MARKER]);
        }
    }
}
