//! The filesystem of a new volume.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::MemfdFlags;
use sistemo_host::directory::{Directory, FileError};
use sistemo_host::lock::Lock;
use sistemo_model::{Filesystem, Volume};
use sistemo_pools::{Draft, Pool, marker};

use crate::error::{Error, Result};
use crate::filesystems;
use crate::volumes::pool_error;

/// Makes the filesystem of a new volume: in its place where programs can write it there, else in
/// a file without a name, of which it is then filled.
pub(crate) fn format(
    volume: &Volume,
    pool: &dyn Pool,
    draft: &mut dyn Draft,
    lock: &Lock,
) -> Result<()> {
    let make = |path: &Path| {
        filesystems::make(volume.filesystem, path, &volume.name, lock).map_err(|source| {
            Error::FilesystemProgram {
                action: "make",
                filesystem: volume.filesystem,
                volume: volume.name.clone(),
                source,
            }
        })
    };
    if volume.filesystem == Filesystem::None {
        return Ok(());
    }
    if let Some(path) = draft.raw_path() {
        return make(path);
    }
    let fail = |source| Error::File {
        action: format!("format volume {}", volume.name),
        source,
    };
    let scratch = scratch_file(volume.filesystem, pool.directory()).map_err(fail)?;
    scratch
        .set_len(volume.size.get())
        .map_err(|error| fail(FileError::new("make a file for", pool.directory(), error)))?;
    let through = format!("/proc/{}/fd/{}", std::process::id(), scratch.as_raw_fd());
    make(Path::new(&through))?;
    draft
        .fill_from(&scratch, &mut |_, _| {})
        .map_err(|source| pool_error(volume, "create", source))?;
    Ok(())
}

/// A few megabytes are made in memory, where they are also thrown away at no cost. XFS has a log
/// of up to 2 GB, which mkfs.xfs(8) leaves unwritten on a disk.
fn scratch_file(filesystem: Filesystem, place: &Path) -> std::result::Result<File, FileError> {
    match filesystem {
        Filesystem::Xfs => Directory::open(place)?.nameless_file(&marker::scratch_name()),
        Filesystem::Ext4 | Filesystem::Btrfs | Filesystem::None => {
            rustix::fs::memfd_create("filesystem", MemfdFlags::CLOEXEC)
                .map(File::from)
                .map_err(|error| FileError::new("make a file for", place, error))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use sistemo_host::program::Program;
    use sistemo_host::sparse::CopyPath;
    use sistemo_model::{Bytes, History, Lifecycle, Role, Timestamp, VolumeId};
    use sistemo_pools::{Content, PoolError};
    use sistemo_testkit::{Requirement, met};

    use super::*;
    use crate::engine::{Caller, Engine, MonitorCommand};
    use crate::reporter::Silent;
    use crate::settings::Settings;
    use crate::volumes::description;

    /// A draft that no program can write.
    #[derive(Debug)]
    struct Closed<'a>(Box<dyn Draft + 'a>);

    impl Draft for Closed<'_> {
        fn raw_path(&self) -> Option<&Path> {
            None
        }

        fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
            self.0.content()
        }

        fn fill_from(
            &mut self,
            source: &File,
            progress: &mut dyn FnMut(u64, u64),
        ) -> Result<CopyPath, PoolError> {
            self.0.fill_from(source, progress)
        }

        fn commit(self: Box<Self>) -> Result<(), PoolError> {
            self.0.commit()
        }
    }

    pub(crate) fn engine(data_dir: &Path) -> Engine {
        let monitor = MonitorCommand {
            program: "/bin/false".into(),
            arguments: Vec::new(),
        };
        let purpose = "a test".to_owned();
        let caller = Caller { purpose, monitor };
        Engine::open(Settings::defaults(data_dir), Arc::new(Silent), caller).unwrap()
    }

    #[test]
    fn a_volume_that_no_program_can_write_is_formatted_all_the_same() {
        if !met(&["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"].map(Requirement::Program)) {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let engine = engine(&home.path().join("data"));
        let pool = engine.pool(&"default".parse().unwrap()).unwrap();
        for (filesystem, check) in [
            (Filesystem::Ext4, &["e2fsck", "-f", "-n"][..]),
            (Filesystem::Xfs, &["xfs_repair", "-n", "-f"][..]),
            (Filesystem::Btrfs, &["btrfs", "check", "-q"][..]),
        ] {
            let id = VolumeId::random();
            let volume = Volume {
                id,
                name: "v".parse().unwrap(),
                size: Bytes::from_mib(512),
                role: Role::Data,
                pool: pool.name().clone(),
                filesystem,
                boot: None,
                history: History::default(),
                lifecycle: Lifecycle::Creating,
                created: Timestamp::now(),
                modified: Timestamp::now(),
            };
            let locks = engine.hold_volumes(&[id]).unwrap();
            let lock = locks.volume(id).unwrap();
            let draft = pool.draft(&description(&volume)).unwrap();
            let mut draft = Box::new(Closed(draft));
            format(&volume, pool.as_ref(), draft.as_mut(), lock).unwrap();
            draft.commit().unwrap();
            let path = pool.facts(id).unwrap().path;
            let program = Program::find(check[0]).unwrap().args(&check[1..]);
            program.arg(path).run().unwrap();
        }
    }
}
