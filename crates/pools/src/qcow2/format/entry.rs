//! The entries of L1 and L2 tables.

use super::{CLUSTER, Fault};

/// The cluster belongs to this table alone.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What an L2 entry says of one cluster of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Entry {
    /// Nothing: what lies beneath shows.
    Empty,
    /// It reads as zeros; a cluster of the file may be kept for it.
    Zero { kept: Option<u64> },
    /// It is at this offset of the file.
    Data { at: u64 },
}

impl Entry {
    pub(in crate::qcow2) fn decode(raw: u64) -> Result<Entry, Fault> {
        if raw & COMPRESSED != 0 {
            return Err(Fault::Compressed);
        }
        if raw & !(COPIED | OFFSET | ZERO) != 0 {
            return Err(Fault::Entry(raw));
        }
        let at = offset(raw)?;
        // Without internal snapshots every cluster has one user.
        if at != 0 && raw & COPIED == 0 {
            return Err(Fault::Shared(at));
        }
        Ok(match (raw & ZERO != 0, at) {
            (true, 0) => Entry::Zero { kept: None },
            (true, at) => Entry::Zero { kept: Some(at) },
            (false, 0) => Entry::Empty,
            (false, at) => Entry::Data { at },
        })
    }

    pub(in crate::qcow2) fn encode(self) -> u64 {
        match self {
            Entry::Empty => 0,
            Entry::Zero { kept: None } => ZERO,
            Entry::Zero { kept: Some(at) } => at | COPIED | ZERO,
            Entry::Data { at } => at | COPIED,
        }
    }

    /// The cluster of the file that it takes.
    pub(in crate::qcow2) fn cluster(self) -> Option<u64> {
        match self {
            Entry::Empty => None,
            Entry::Zero { kept } => kept,
            Entry::Data { at } => Some(at),
        }
    }
}

/// What an L1 entry says: where the L2 table is, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qcow2) struct Pointer(pub(in crate::qcow2) Option<u64>);

impl Pointer {
    pub(in crate::qcow2) fn decode(raw: u64) -> Result<Pointer, Fault> {
        if raw & !(COPIED | OFFSET) != 0 {
            return Err(Fault::Entry(raw));
        }
        match offset(raw)? {
            0 => Ok(Pointer(None)),
            at if raw & COPIED == 0 => Err(Fault::Shared(at)),
            at => Ok(Pointer(Some(at))),
        }
    }

    pub(in crate::qcow2) fn encode(self) -> u64 {
        self.0.map_or(0, |at| at | COPIED)
    }
}

fn offset(raw: u64) -> Result<u64, Fault> {
    let at = raw & OFFSET;
    if at.is_multiple_of(CLUSTER) {
        Ok(at)
    } else {
        Err(Fault::Entry(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_read_as_it_was_written() {
        for entry in [
            Entry::Empty,
            Entry::Zero { kept: None },
            Entry::Zero {
                kept: Some(7 * CLUSTER),
            },
            Entry::Data { at: 9 * CLUSTER },
        ] {
            assert_eq!(Entry::decode(entry.encode()), Ok(entry));
        }
        for pointer in [Pointer(None), Pointer(Some(CLUSTER))] {
            assert_eq!(Pointer::decode(pointer.encode()), Ok(pointer));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(Entry::decode(COMPRESSED | 0x77), Err(Fault::Compressed));
        assert_eq!(Entry::decode(CLUSTER), Err(Fault::Shared(CLUSTER)));
        for raw in [COPIED | 0x200, COPIED | CLUSTER | 2, 1 << 60] {
            assert_eq!(Entry::decode(raw), Err(Fault::Entry(raw)), "{raw:#x}");
        }
        for raw in [COPIED | 0x200, 1, 1 << 60] {
            assert_eq!(Pointer::decode(raw), Err(Fault::Entry(raw)), "{raw:#x}");
        }
    }
}
