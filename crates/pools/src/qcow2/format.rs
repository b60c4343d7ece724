//! The qcow2 format as this driver writes it: version 3, clusters of 64 KiB, 16-bit refcounts, no
//! compression, no encryption, no internal snapshots.
//!
//! Whatever else a file says is refused by name, never worked around. The format is in QEMU's
//! `docs/interop/qcow2.txt`.

mod entry;
mod header;

pub(super) use self::entry::{Entry, Pointer};
pub(super) use self::header::{Header, Position};

/// The bytes of a cluster, the unit in which space is given out and tables are kept.
pub(super) const CLUSTER: u64 = 1 << 16;
/// How many 64-bit entries a table of one cluster has.
pub(super) const TABLE_ENTRIES: u64 = CLUSTER / 8;
/// How many clusters one refcount block counts.
pub(super) const COUNTED_BY_BLOCK: u64 = CLUSTER / 2;
/// The bytes of the volume that one L2 table maps.
pub(super) const MAPPED_BY_TABLE: u64 = CLUSTER * TABLE_ENTRIES;
/// The most entries that an L1 table may have: QEMU opens none of more than 32 MiB.
pub(super) const L1_LIMIT: u64 = (32 << 20) / 8;
/// The largest volume that an L1 table can map.
pub(super) const SIZE_LIMIT: u64 = L1_LIMIT * MAPPED_BY_TABLE;

/// Why a file is not a qcow2 file of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("is cut short")]
    Short,
    #[error("is not a qcow2 file")]
    Magic,
    #[error("has version {0} of the format; only 3 is known")]
    Version(u32),
    #[error("has a header of {0} bytes")]
    HeaderLength(u32),
    #[error("was not closed: its refcounts may be wrong")]
    Dirty,
    #[error("is marked corrupt by QEMU")]
    Corrupt,
    #[error("needs a feature that is not known: {0}")]
    Feature(String),
    #[error("is encrypted")]
    Encrypted,
    #[error("has internal snapshots")]
    InternalSnapshots,
    #[error("has clusters of 2^{0} bytes; only 2^16 is known")]
    ClusterBits(u32),
    #[error("has refcounts of 2^{0} bits; only 2^4 is known")]
    RefcountOrder(u32),
    #[error("has an impossible size of {0} bytes")]
    Size(u64),
    #[error("has an L1 table that cannot be: {entries} entries at {offset}")]
    L1Table { entries: u32, offset: u64 },
    #[error("has a refcount table that cannot be: {clusters} clusters at {offset}")]
    RefcountTable { clusters: u32, offset: u64 },
    #[error("has a header extension that cannot be read")]
    Extension,
    #[error("names its backing file in a way that cannot be read")]
    BackingName,
    #[error("does not say that its backing file is qcow2")]
    BackingFormat,
    #[error("lies over {0:?}, which is no layer of this pool")]
    ForeignBacking(String),
    #[error("is part of a chain of more than {0} files")]
    Depth(usize),
    #[error("has a table entry that cannot be: {0:#x}")]
    Entry(u64),
    #[error("has a compressed cluster")]
    Compressed,
    #[error("ends at {length} bytes, but has something at {offset}")]
    BehindEnd { offset: u64, length: u64 },
    #[error("uses the cluster at {0} without counting it")]
    Uncounted(u64),
    #[error("shares the cluster at {0} with itself")]
    Shared(u64),
    #[error("is smaller than the layer under it")]
    SmallerThanLayer,
    #[error("does not say when it was taken")]
    Untimed,
    #[error("is missing")]
    Missing,
}
