//! A volume's bytes and holes.

use std::ops::Range;

use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes};
use sistemo_pools::PoolError;

use super::snapshots::{snapshots, take};
use crate::Bench;
use crate::expectation::{equal, holds, refused, same_bytes};
use crate::law::{Stop, Verdict};
use crate::material::{MIB, a_name, knows_holes, read, reads, reads_zeros, volume, write};
use crate::random::{Random, noise};

pub(super) fn content_keeps_its_holes(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 64)?;
    let (one, two) = (noise(1, 1 << 20), noise(2, 1 << 20));
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    content.write_at(&one, 8 * MIB)?;
    content.write_at(&two, 40 * MIB)?;
    content.flush()?;
    drop(content);

    reads(&*pool, made.id, 8 * MIB, &one)?;
    reads(&*pool, made.id, 40 * MIB, &two)?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    reads_zeros(&*content, 9 * MIB, 10 * MIB)?;
    let extents = content.extents()?;
    let covers = |at| extents.iter().any(|e| e.offset <= at && at < e.end());
    let told = || format!("they are {extents:?}");
    holds(
        covers(8 * MIB) && covers(9 * MIB - 1) && covers(40 * MIB),
        "extents at 8 and 40 MiB, where something was written",
        told,
    )?;
    holds(
        extents.is_sorted_by(|a, b| a.end() <= b.offset),
        "extents in order",
        told,
    )?;
    if !knows_holes(&*pool, made.id)? {
        return Ok(());
    }
    holds(
        !covers(0) && !covers(20 * MIB) && !covers(50 * MIB),
        "no extents at 0, 20 and 50 MiB, where nothing was written",
        told,
    )?;
    let used = pool.facts(made.id)?.used;
    holds(
        used >= Bytes::from_mib(2) && used < Bytes::from_mib(4),
        "2 to 4 MiB in use",
        || format!("it takes {used}"),
    )
}

pub(super) fn content_gives_space_back(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 16)?;
    let data = noise(5, 8 << 20);
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    content.write_at(&data, 0)?;
    let hole = Extent {
        offset: MIB,
        length: 7 * MIB,
    };
    content.make_hole(hole)?;
    content.flush()?;
    equal("the content's size", content.size(), made.size)?;
    drop(content);
    reads(&*pool, made.id, 0, &data[..1 << 20])?;
    let content = pool.content(made.id, Access::ReadOnly)?;
    reads_zeros(&*content, MIB, made.size.get())?;
    let used = pool.facts(made.id)?.used;
    holds(
        used < Bytes::from_mib(2) || !knows_holes(&*pool, made.id)?,
        "less than 2 MiB in use",
        || format!("it takes {used}"),
    )?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])
}

pub(super) fn a_hole_gives_back_what_the_volume_has_alone(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 32)?;
    let kept = noise(1, 1 << 20);
    write(&*pool, made.id, &kept, MIB)?;
    let name = a_name("kept");
    take(&*pool, made.id, &name)?;
    let before = pool.facts(made.id)?.used;
    write(&*pool, made.id, &noise(2, 8 << 20), 8 * MIB)?;

    // What lies beneath, and what is new.
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    for (offset, length) in [(MIB, MIB / 2 + 512), (8 * MIB, 8 * MIB)] {
        content.make_hole(Extent { offset, length })?;
        content.flush()?;
    }
    drop(content);
    let content = pool.content(made.id, Access::ReadOnly)?;
    reads_zeros(&*content, MIB, MIB + MIB / 2 + 512)?;
    reads_zeros(&*content, 2 * MIB, made.size.get())?;
    drop(content);
    let behind = MIB / 2 + 512;
    reads(
        &*pool,
        made.id,
        MIB + behind,
        &kept[in_memory(behind..MIB)?],
    )?;
    let used = pool.facts(made.id)?.used;
    let allowed = before.get() + MIB;
    holds(
        used.get() < allowed || !knows_holes(&*pool, made.id)?,
        format!("less than {allowed} bytes in use"),
        || format!("it takes {}", used.get()),
    )?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])?;

    let content = snapshots(&*pool)?.snapshot_content(made.id, &name)?;
    let read = read(&*content, MIB, kept.len())?;
    same_bytes("the snapshot", MIB, &read, &kept)
}

pub(super) fn content_ends_at_the_size(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let end = made.size.get();
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    for offset in [end - 1, end, u64::MAX] {
        let hole = Extent { offset, length: 2 };
        let mut buffer = [0; 2];
        for (what, result) in [
            ("a write", content.write_at(b"xx", offset)),
            ("a read", content.read_at(&mut buffer, offset)),
            ("a hole", content.make_hole(hole)),
        ] {
            refused!(
                format!("{what} of 2 bytes at {offset} of {end}"),
                result,
                PoolError::Outside { .. }
            )?;
        }
    }
    equal("an extent behind the end", content.next_extent(end)?, None)?;
    drop(content);
    let content = pool.content(made.id, Access::ReadOnly)?;
    reads_zeros(&*content, 0, end)?;
    equal("its flaws", pool.verify(made.id, made.size)?, vec![])
}

pub(super) fn content_opened_to_read_is_not_written(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    let mut content = pool.content(made.id, Access::ReadOnly)?;
    let all = Extent {
        offset: 0,
        length: MIB,
    };
    for (what, result) in [
        ("a write", content.write_at(b"x", 0)),
        ("a hole", content.make_hole(all)),
    ] {
        refused!(
            format!("{what} in a content that was opened to read"),
            result,
            PoolError::OpenedReadOnly { .. }
        )?;
    }
    reads_zeros(&*content, 0, 1)
}

pub(super) fn content_is_what_was_written_whatever_the_order(bench: &Bench) -> Verdict {
    const CASES: u64 = 24;
    let seed = bench.seed();
    let mut random = Random::new(seed);
    for _ in 0..CASES {
        write_at_random(bench, &mut random)
            .map_err(|stop| stop.in_circumstances(format!("random work with seed {seed}")))?;
    }
    Ok(())
}

/// Writes and makes holes anywhere, and compares with the same done in memory.
fn write_at_random(bench: &Bench, random: &mut Random) -> Verdict {
    const SIZE: u64 = 2 * MIB;
    let pool = bench.pool()?;
    let made = volume(&*pool, SIZE / MIB)?;
    let mut wanted = vec![0; in_memory(0..SIZE)?.len()];
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    for _ in 0..random.below(12) {
        let offset = random.below(SIZE);
        let length = (1 + random.below(200_000)).min(SIZE - offset);
        let range = in_memory(offset..offset + length)?;
        if random.below(2) == 0 {
            let data = noise(random.next(), range.len());
            content.write_at(&data, offset)?;
            wanted[range].copy_from_slice(&data);
        } else {
            content.make_hole(Extent { offset, length })?;
            wanted[range].fill(0);
        }
    }
    // Reading the extents alone gives all of it.
    let mut seen = vec![0; wanted.len()];
    for extent in content.extents()? {
        let range = in_memory(extent.offset..extent.end())?;
        content.read_at(&mut seen[range], extent.offset)?;
    }
    same_bytes("its extents", 0, &seen, &wanted)?;
    same_bytes("it", 0, &read(&*content, 0, wanted.len())?, &wanted)?;
    drop(content);
    let _ = pool.remove(made.id)?;
    Ok(())
}

fn in_memory(range: Range<u64>) -> Result<Range<usize>, Stop> {
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) if end <= 64 << 20 => Ok(start..end),
        _ => Err(Stop::failed(
            "extents within the volume",
            format!("one is {range:?}"),
        )),
    }
}

pub(super) fn what_looks_like_qcow2_is_raw(bench: &Bench) -> Verdict {
    let pool = bench.pool()?;
    let made = volume(&*pool, 1)?;
    // Version 3, with the name of a backing file at 0x68, 11 bytes long, and 64 KiB clusters;
    // its virtual size would be 4 GiB. docs/interop/qcow2.txt in QEMU has the layout.
    let mut sector = Vec::from(*b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\x68\0\0\0\x0b\0\0\0\x10");
    sector.extend_from_slice(b"\0\0\0\x01\0\0\0\0");
    sector.resize(512, 0);
    sector[0x68..0x68 + 11].copy_from_slice(b"/etc/passwd");
    let format = pool.facts(made.id)?.format;
    let location = pool.open(made.id, Access::ReadWrite)?;
    let mut content = pool.content(made.id, Access::ReadWrite)?;
    content.write_at(&sector, 0)?;
    content.flush()?;
    drop(content);
    for pool in [pool, bench.pool()?] {
        let facts = pool.facts(made.id)?;
        equal("the size", facts.size, made.size)?;
        equal("the format", facts.format, format)?;
        let opened = pool.open(made.id, Access::ReadWrite)?;
        equal("the location", &opened, &location)?;
        equal("its flaws", pool.verify(made.id, made.size)?, vec![])?;
        let content = pool.content(made.id, Access::ReadOnly)?;
        equal("the content's size", content.size(), made.size)?;
        reads(&*pool, made.id, 0, &sector)?;
        reads_zeros(&*content, 512, made.size.get())?;
    }
    Ok(())
}
