//! Opening, closing, describing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sistemo_host::Changed;
use sistemo_model::{Access, Bytes, Filesystem, VolumeId};
use sistemo_pools::Location;

use crate::Bench;
use crate::expectation::{equal, holds};
use crate::law::{Stop, Verdict};
use crate::material::{a_name, volume};

pub(super) fn opening_says_how_and_closing_twice_is_no_error(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let opened = pool.open(made.id, Access::ReadWrite)?;
    let again = pool.open(made.id, Access::ReadOnly)?;
    equal("the location the second time", &again, &opened)?;
    is_there(&opened, made.size)?;
    pool.close(made.id)?;
    pool.close(made.id)?;
    pool.close(VolumeId::random())?;
    Ok(())
}

/// Expects that there is what a location says, of that size.
pub(super) fn is_there(location: &Location, size: Bytes) -> Verdict {
    let path = location.path();
    holds(path.is_absolute(), "an absolute path", || {
        format!("it is {}", path.display())
    })?;
    let there = |error| Stop::failed(format!("{} to be there", path.display()), error);
    match location {
        Location::RawFile(path) => {
            let length = path.metadata().map_err(there)?.len();
            equal("the file's length", length, size.get())?;
        }
        Location::Qcow2File(path) => {
            // The magic number, the version, then the virtual size at byte 24.
            let mut header = [0; 32];
            let file = File::open(path).map_err(there)?;
            file.read_exact_at(&mut header, 0).map_err(there)?;
            equal("the magic number", &header[..4], &b"QFI\xfb"[..])?;
            let wanted = size.get().to_be_bytes();
            equal("the virtual size", &header[24..], &wanted[..])?;
        }
        Location::BlockDevice(path) => {
            let _ = path.metadata().map_err(there)?;
        }
    }
    Ok(())
}

pub(super) fn describe_replaces_once(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let mut made = volume(&*pool, 1)?;
    equal("the same again", pool.describe(&made)?, Changed::No)?;
    made.name = a_name("renamed");
    equal("another name", pool.describe(&made)?, Changed::Yes)?;
    equal("the same again", pool.describe(&made)?, Changed::No)?;
    equal("the description", pool.description(made.id)?, made.clone())?;
    // What a guest made of it meanwhile does not make it another volume.
    made.filesystem = Filesystem::Xfs;
    equal("another filesystem", pool.describe(&made)?, Changed::Yes)?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])?;
    equal("the volumes", pool.list()?.len(), 1)
}
