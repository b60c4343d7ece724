//! What is broken is found.

use std::fs::File;

use sistemo_model::{Access, Bytes};
use sistemo_pools::{Flaw, Location, Pool};

use crate::Bench;
use crate::expectation::{equal, holds};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, data_file, volume, write};
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

fn cut(file: &File, length: u64) -> Verdict {
    let cut = file.set_len(length);
    cut.map_err(|error| Stop::failed("the volume's file to be cut short", error))
}

fn is_flawed(pool: &dyn Pool, made: &sistemo_pools::Description, how: &str) -> Verdict {
    let flaws = pool.verify(made.id, made.size)?;
    holds(
        !flaws.is_empty(),
        format!("flaws of a volume {how}"),
        || "none were found".to_owned(),
    )
}
