//! What is broken is found.

use std::fs::File;

use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Description, Flaw, Location, Pool};

use super::snapshots::{snapshots, take};
use crate::Bench;
use crate::expectation::{equal, holds};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, a_name, data_file, reads, volume, write};
use crate::random::noise;

pub(super) fn verify_finds_real_damage(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    write(&*pool, made.id, &noise(1, 4 << 20), 0)?;
    let recorded = made.size;
    equal("its flaws", pool.verify(made.id, recorded)?, vec![])?;
    let file = data_file(&*pool, made.id)?;
    let location = pool.open(made.id, Access::ReadOnly)?;
    pool.close(made.id)?;

    // The size that somebody else recorded.
    let described = recorded;
    let other = Bytes::from_mib(9);
    let flaws = pool.verify(made.id, other)?;
    let wrong_size = Flaw::WrongSize {
        recorded: other,
        real: described,
    };
    let described_size = Flaw::DescribedSize {
        recorded: other,
        described,
    };
    equal("its flaws", flaws, vec![wrong_size, described_size])?;

    if let Location::RawFile(_) = location {
        for real in [Bytes::new(0), Bytes::from_mib(4), Bytes::new(8 * MIB - 1)] {
            cut(&file, real.get())?;
            let wrong = Flaw::WrongSize { recorded, real };
            equal("its flaws", pool.verify(made.id, recorded)?, vec![wrong])?;
        }
        cut(&file, recorded.get())?;
        equal("its flaws", pool.verify(made.id, recorded)?, vec![])?;
    } else {
        for left in [file.metadata()?.len() / 2, 0] {
            cut(&file, left)?;
            is_flawed(&*pool, &made, &format!("whose file is cut to {left} bytes"))?;
        }
    }
    let path = location.path();
    std::fs::remove_file(path)
        .map_err(|error| Stop::failed(format!("{} to be there", path.display()), error))?;
    is_flawed(&*pool, &made, "whose file is gone")
}

pub(super) fn examining_reads_all_there_is_and_changes_nothing(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let data = noise(1, 3 << 20);
    write(&*pool, made.id, &data, 2 * MIB)?;
    reads_at_least(&*pool, &made, 3 * MIB)?;
    reads(&*pool, made.id, 2 * MIB, &data)?;
    let used = pool.facts(made.id)?.used;
    reads_at_least(&*pool, &made, 3 * MIB)?;
    equal("what it takes", pool.facts(made.id)?.used, used)?;

    let silent = &mut |_, _| {};
    let other = Bytes::from_mib(9);
    let flaws = pool.examine(made.id, other, silent)?;
    equal("its flaws", flaws, pool.verify(made.id, other)?)?;
    let missing = pool.examine(VolumeId::random(), other, silent)?;
    equal("the flaws of a missing one", missing, vec![Flaw::Missing])?;
    let file = data_file(&*pool, made.id)?;
    cut(&file, file.metadata()?.len() / 2)?;
    let flaws = pool.examine(made.id, made.size, silent)?;
    holds(
        !flaws.is_empty(),
        "flaws of a volume that is cut short",
        || "none were found".to_owned(),
    )
}

pub(super) fn examining_reads_the_snapshots_too(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 8)?;
    let name = a_name("before");
    write(&*pool, made.id, &noise(1, 3 << 20), 2 * MIB)?;
    take(&*pool, made.id, &name)?;
    write(&*pool, made.id, &noise(2, 3 << 20), 2 * MIB)?;
    reads_at_least(&*pool, &made, 6 * MIB)?;
    let _ = snapshots(&*pool)?.revert(made.id, &name, &mut |_, _| {})?;
    reads_at_least(&*pool, &made, 3 * MIB)
}

/// Expects that examining a sound volume reads so many bytes, and tells its end.
fn reads_at_least(pool: &dyn Pool, made: &Description, bytes: u64) -> Verdict {
    let mut told = (0, 0);
    let flaws = pool.examine(made.id, made.size, &mut |done, total| told = (done, total))?;
    pool.close(made.id)?;
    equal("its flaws", flaws, vec![])?;
    equal("what was read in the end", told.0, told.1)?;
    holds(
        told.1 >= bytes,
        format!("at least {bytes} bytes to be read"),
        || format!("they were {}", told.1),
    )
}

fn cut(file: &File, length: u64) -> Verdict {
    let cut = file.set_len(length);
    cut.map_err(|error| Stop::failed("the volume's file to be cut short", error))
}

fn is_flawed(pool: &dyn Pool, made: &Description, how: &str) -> Verdict {
    let flaws = pool.verify(made.id, made.size)?;
    holds(
        !flaws.is_empty(),
        format!("flaws of a volume {how}"),
        || "none were found".to_owned(),
    )
}
