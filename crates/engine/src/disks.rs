//! Volumes as disks: for a VMM, and for programs of this host.

use sistemo_host::directory::Directory;
use sistemo_host::lock::Lock;
use sistemo_model::{Access, Volume};
use sistemo_pools::Location;
use sistemo_vmm::{DiskLocation, RawAccess};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::volumes::pool_error;

/// Where in the data directory the volumes that are no raw files are shown as such.
const RAW: &str = "raw";

/// What a VMM is told of where a volume is.
pub(crate) fn disk_location(location: Location) -> DiskLocation {
    match location {
        Location::RawFile(path) => DiskLocation::RawFile(path),
        Location::BlockDevice(path) => DiskLocation::BlockDevice(path),
        Location::Qcow2File(path) => DiskLocation::Qcow2File(path),
    }
}

impl Engine {
    /// Opens a volume that no machine uses as a raw file, whatever its pool keeps it in, for
    /// programs that inherit `lock`, the volume's, and [`RawAccess::held`].
    ///
    /// Killed in the middle, it leaves the volume to those programs, and then to nobody.
    pub(crate) fn with_raw_access<T>(
        &self,
        volume: &Volume,
        access: Access,
        lock: &Lock,
        work: impl FnOnce(&RawAccess) -> T,
    ) -> Result<T> {
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "open", source);
        let location = pool.open(volume.id, access).map_err(fail)?;
        let worked = self.worked_on(volume, &disk_location(location), access, lock, work);
        let closed = pool.close(volume.id).map_err(fail);
        let outcome = worked?;
        closed.map(|()| outcome)
    }

    fn worked_on<T>(
        &self,
        volume: &Volume,
        location: &DiskLocation,
        access: Access,
        lock: &Lock,
        work: impl FnOnce(&RawAccess) -> T,
    ) -> Result<T> {
        let (directory, _) =
            Directory::create(&self.data_dir().join(RAW)).map_err(Error::DataFile)?;
        let fail = |source| Error::VolumeAccess {
            volume: volume.name.clone(),
            source,
        };
        let name = volume.id.to_string();
        let raw = RawAccess::open(location, access, &directory, &name, lock).map_err(fail)?;
        let outcome = work(&raw);
        raw.close().map_err(fail)?;
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sistemo_host::program::Program;
    use sistemo_model::{Bytes, Reference};
    use sistemo_testkit::{Requirement, met};

    use super::*;
    use crate::filesystems;
    use crate::formatting::tests::engine;
    use crate::volumes::NewVolume;

    fn run(program: &str, arguments: &[&str], path: &Path) {
        let program = Program::find(program).unwrap().args(arguments);
        program.arg(path).run().unwrap();
    }

    #[test]
    fn an_ext4_in_a_qcow2_file_grows_with_it() {
        if !met(&[
            Requirement::Program("qemu-img"),
            Requirement::Program("qemu-storage-daemon"),
            Requirement::Program("fusermount3"),
        ]) {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let engine = engine(&home.path().join("data"));
        let new = NewVolume {
            size: Bytes::from_mib(64),
            name: Some("v".parse().unwrap()),
            pool: None,
            filesystem: sistemo_model::Filesystem::Ext4,
        };
        let raw = engine.create_volume(new).unwrap().path.unwrap();
        let reference = Reference::from("v".to_owned());
        let find = |session: &sistemo_catalog::Session<'_>| session.find_volume(&reference);
        let volume = engine.catalogue.read(find).unwrap();
        let file = home.path().join("file");
        let convert = ["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap()];
        run("qemu-img", &convert, &file);
        let resize = Program::find("qemu-img").unwrap();
        let resize = resize.args(["resize", "-q", "-f", "qcow2"]).arg(&file);
        resize.arg("128M").run().unwrap();

        let locks = engine.hold_volumes(&[volume.id]).unwrap();
        let lock = locks.volume(volume.id).unwrap();
        let location = DiskLocation::Qcow2File(file.clone());
        engine
            .worked_on(&volume, &location, Access::ReadWrite, lock, |raw| {
                let inherited: Vec<_> = raw.held().into_iter().collect();
                assert_eq!(inherited.len(), 1);
                filesystems::check(raw.path(), &inherited).unwrap();
                filesystems::grow(raw.path(), &inherited).unwrap();
            })
            .unwrap();
        let grown = home.path().join("grown");
        let convert = [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            file.to_str().unwrap(),
        ];
        run("qemu-img", &convert, &grown);
        run("e2fsck", &["-f", "-n"], &grown);
        let shown = Program::find("dumpe2fs").unwrap().arg("-h").arg(&grown);
        let text = shown.run().unwrap().text();
        let line = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        assert_eq!(line("Block count:") * line("Block size:"), 128 << 20);
    }
}
