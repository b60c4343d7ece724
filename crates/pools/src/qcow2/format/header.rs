//! The header of a qcow2 file.

use sistemo_model::{Bytes, Timestamp};

use super::{CLUSTER, Fault, L1_LIMIT, MAPPED_BY_TABLE, SIZE_LIMIT};

const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const REFCOUNT_ORDER: u32 = 4;
/// What version 3 has at least; newer programs append to it.
const LENGTH: usize = 104;
/// No name of a backing file is longer.
const NAME_LIMIT: usize = 1023;
/// QEMU opens no refcount table of more than 8 MiB.
const REFCOUNT_TABLE_LIMIT: u32 = 128;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Ours: when a snapshot was taken, as RFC 3339 has it. QEMU keeps what it does not know.
const TAKEN: u32 = u32::from_be_bytes(*b"SIST");

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const FEATURES: [(u64, &str); 3] = [
    (1 << 2, "external data file"),
    (1 << 3, "compression type"),
    (1 << 4, "extended L2 entries"),
];

/// Where a field is that is changed in place.
#[derive(Clone, Copy, Debug)]
pub(in crate::qcow2) enum Position {
    BackingName = 8,
    Size = 24,
    Autoclear = 88,
}

/// What a header says, checked for itself; whether the file is as long as it says is checked
/// where it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qcow2) struct Header {
    /// The volume's bytes.
    pub(in crate::qcow2) size: u64,
    /// The file that it lies over, in the same directory.
    pub(in crate::qcow2) backing: Option<String>,
    /// When it was taken, for a snapshot.
    pub(in crate::qcow2) taken: Option<Timestamp>,
    pub(in crate::qcow2) l1_offset: u64,
    pub(in crate::qcow2) l1_entries: u32,
    pub(in crate::qcow2) refcount_table_offset: u64,
    pub(in crate::qcow2) refcount_table_clusters: u32,
    /// Whether it has features that hold only as long as nobody else writes.
    pub(in crate::qcow2) autoclear: bool,
}

/// Reads big-endian numbers, and `Short` where there are none.
struct Bytewise<'a>(&'a [u8]);

impl Bytewise<'_> {
    fn u32(&self, at: usize) -> Result<u32, Fault> {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(Fault::Short)
    }

    fn u64(&self, at: usize) -> Result<u64, Fault> {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or(Fault::Short)
    }
}

impl Header {
    /// Reads a header from the beginning of a file; [`Fault::Short`] where more of the first
    /// cluster is needed.
    pub(in crate::qcow2) fn decode(bytes: &[u8]) -> Result<Header, Fault> {
        let fields = Bytewise(bytes);
        if fields.u32(0)? != MAGIC {
            return Err(Fault::Magic);
        }
        match fields.u32(4)? {
            VERSION => {}
            other => return Err(Fault::Version(other)),
        }
        check_features(fields.u64(72)?)?;
        match fields.u32(20)? {
            CLUSTER_BITS => {}
            other => return Err(Fault::ClusterBits(other)),
        }
        match fields.u32(96)? {
            REFCOUNT_ORDER => {}
            other => return Err(Fault::RefcountOrder(other)),
        }
        if fields.u32(32)? != 0 {
            return Err(Fault::Encrypted);
        }
        if fields.u32(60)? != 0 {
            return Err(Fault::InternalSnapshots);
        }
        let length = fields.u32(100)?;
        let header_end = usize::try_from(length).unwrap_or(usize::MAX);
        if header_end < LENGTH || u64::from(length) > CLUSTER || !length.is_multiple_of(8) {
            return Err(Fault::HeaderLength(length));
        }
        let backing = backing_name(bytes, header_end)?;
        let extensions = read_extensions(bytes, header_end, &fields)?;
        if backing.is_some() && extensions.backing_format.as_deref() != Some(b"qcow2") {
            return Err(Fault::BackingFormat);
        }
        let header = Header {
            size: fields.u64(24)?,
            backing,
            taken: extensions.taken,
            l1_offset: fields.u64(40)?,
            l1_entries: fields.u32(36)?,
            refcount_table_offset: fields.u64(48)?,
            refcount_table_clusters: fields.u32(56)?,
            autoclear: fields.u64(88)? != 0,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Fault> {
        let whole_sectors = self.size.is_multiple_of(Bytes::SECTOR);
        if self.size == 0 || self.size > SIZE_LIMIT || !whole_sectors {
            return Err(Fault::Size(self.size));
        }
        let entries = u64::from(self.l1_entries);
        let possible = |offset: u64| {
            offset != 0 && offset.is_multiple_of(CLUSTER) && i64::try_from(offset).is_ok()
        };
        let enough = entries >= self.size.div_ceil(MAPPED_BY_TABLE) && entries <= L1_LIMIT;
        if !enough || !possible(self.l1_offset) {
            return Err(Fault::L1Table {
                entries: self.l1_entries,
                offset: self.l1_offset,
            });
        }
        let clusters = self.refcount_table_clusters;
        let fits = clusters > 0 && clusters <= REFCOUNT_TABLE_LIMIT;
        if !fits || !possible(self.refcount_table_offset) {
            return Err(Fault::RefcountTable {
                clusters,
                offset: self.refcount_table_offset,
            });
        }
        Ok(())
    }

    /// The header as it stands at the beginning of a file, shorter than a cluster.
    pub(in crate::qcow2) fn encode(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if self.backing.is_some() {
            push_extension(&mut extensions, BACKING_FORMAT, b"qcow2");
        }
        if let Some(taken) = self.taken {
            push_extension(&mut extensions, TAKEN, taken.to_string().as_bytes());
        }
        push_extension(&mut extensions, END, b"");
        let name = self.backing.as_deref().unwrap_or_default().as_bytes();
        let name_offset = if name.is_empty() {
            0
        } else {
            LENGTH + extensions.len()
        };

        let mut bytes = Vec::with_capacity(LENGTH + extensions.len() + name.len());
        let words = |bytes: &mut Vec<u8>, words: &[u32]| {
            for word in words {
                bytes.extend(word.to_be_bytes());
            }
        };
        words(&mut bytes, &[MAGIC, VERSION]);
        bytes.extend((name_offset as u64).to_be_bytes());
        let name_length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        words(&mut bytes, &[name_length, CLUSTER_BITS]);
        bytes.extend(self.size.to_be_bytes());
        words(&mut bytes, &[0, self.l1_entries]);
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        words(&mut bytes, &[self.refcount_table_clusters, 0]);
        // The table of internal snapshots, then features: incompatible, compatible, autoclear.
        bytes.extend([0; 8 * 4]);
        words(&mut bytes, &[REFCOUNT_ORDER, LENGTH_FIELD]);
        bytes.extend(extensions);
        bytes.extend(name);
        bytes
    }

    /// The fields from [`Position::Size`] on as far as the place of the refcount table, which are
    /// changed together, in one sector.
    pub(in crate::qcow2) fn encode_mapping(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 104")]
const LENGTH_FIELD: u32 = LENGTH as u32;

fn check_features(bits: u64) -> Result<(), Fault> {
    if bits & CORRUPT != 0 {
        return Err(Fault::Corrupt);
    }
    if bits & DIRTY != 0 {
        return Err(Fault::Dirty);
    }
    match FEATURES.iter().find(|(bit, _)| bits & bit != 0) {
        Some((_, name)) => Err(Fault::Feature((*name).to_owned())),
        None if bits == 0 => Ok(()),
        None => Err(Fault::Feature(format!("bit {}", bits.trailing_zeros()))),
    }
}

fn backing_name(bytes: &[u8], header_end: usize) -> Result<Option<String>, Fault> {
    let fields = Bytewise(bytes);
    let offset = fields.u64(8)?;
    if offset == 0 {
        return Ok(None);
    }
    let length = usize::try_from(fields.u32(16)?).unwrap_or(usize::MAX);
    if offset >= CLUSTER || length == 0 || length > NAME_LIMIT {
        return Err(Fault::BackingName);
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if start < header_end || (start + length) as u64 > CLUSTER {
        return Err(Fault::BackingName);
    }
    let name = bytes.get(start..start + length).ok_or(Fault::Short)?;
    let name = std::str::from_utf8(name).map_err(|_| Fault::BackingName)?;
    Ok(Some(name.to_owned()))
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<Vec<u8>>,
    taken: Option<Timestamp>,
}

fn read_extensions(
    bytes: &[u8],
    header_end: usize,
    fields: &Bytewise<'_>,
) -> Result<Extensions, Fault> {
    let mut found = Extensions::default();
    let mut at = header_end;
    // They end with the end mark, or where the name of the backing file begins.
    let stop = match usize::try_from(fields.u64(8)?) {
        Ok(0) | Err(_) => usize::try_from(CLUSTER).unwrap_or(usize::MAX),
        Ok(offset) => offset,
    };
    while at + 8 <= stop {
        let kind = fields.u32(at)?;
        let length = usize::try_from(fields.u32(at + 4)?).unwrap_or(usize::MAX);
        at += 8;
        if kind == END {
            break;
        }
        if length > stop - at {
            return Err(Fault::Extension);
        }
        let body = bytes.get(at..at + length).ok_or(Fault::Short)?;
        match kind {
            BACKING_FORMAT => found.backing_format = Some(body.to_vec()),
            TAKEN => {
                let text = std::str::from_utf8(body).map_err(|_| Fault::Extension)?;
                found.taken = Some(text.parse().map_err(|_| Fault::Extension)?);
            }
            _ => {}
        }
        at += length.next_multiple_of(8);
    }
    Ok(found)
}

fn push_extension(extensions: &mut Vec<u8>, kind: u32, body: &[u8]) {
    extensions.extend(kind.to_be_bytes());
    extensions.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    extensions.extend(body);
    extensions.resize(extensions.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            size: 5 << 30,
            backing: Some("a1b2c3d4-5678-4abc-8ef0-123456789abc.1.qcow2".to_owned()),
            taken: Some("2026-11-22T08:00:00.123456789Z".parse().unwrap()),
            l1_offset: 3 * CLUSTER,
            l1_entries: 10,
            refcount_table_offset: CLUSTER,
            refcount_table_clusters: 1,
            autoclear: false,
        }
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let mut alone = header();
        alone.backing = None;
        alone.taken = None;
        for header in [header(), alone] {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn it_fits_into_one_sector_so_that_it_is_written_whole() {
        assert!(header().encode().len() <= 512);
    }

    #[test]
    fn a_feature_that_is_not_known_is_refused_by_name() {
        for (bit, said) in [
            (0, "not closed"),
            (1, "corrupt"),
            (2, "external data file"),
            (4, "extended L2"),
            (40, "bit 40"),
        ] {
            let mut bytes = header().encode();
            bytes[72..80].copy_from_slice(&(1_u64 << bit).to_be_bytes());
            let fault = Header::decode(&bytes).unwrap_err();
            assert!(fault.to_string().contains(said), "{fault}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for (at, value, fault) in [
            (0, 0, Fault::Magic),
            (4, 2, Fault::Version(2)),
            (20, 21, Fault::ClusterBits(21)),
            (32, 2, Fault::Encrypted),
            (60, 1, Fault::InternalSnapshots),
            (96, 6, Fault::RefcountOrder(6)),
            (100, 72, Fault::HeaderLength(72)),
            (100, u32::MAX, Fault::HeaderLength(u32::MAX)),
            (16, 0, Fault::BackingName),
            (16, u32::MAX, Fault::BackingName),
        ] {
            let mut bytes = header().encode();
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            assert_eq!(Header::decode(&bytes), Err(fault));
        }
        for (size, l1_entries, l1_offset) in [
            (0, 1, CLUSTER),
            (u64::MAX, u32::MAX, CLUSTER),
            (1 << 30, 1, CLUSTER),
            (1 << 30, 2, 0),
            (1 << 30, 2, 512),
            (1 << 30, 2, 1 << 63),
            (513, 1, CLUSTER),
        ] {
            let impossible = Header {
                size,
                l1_offset,
                l1_entries,
                ..header()
            };
            assert!(Header::decode(&impossible.encode()).is_err());
        }
    }

    #[test]
    fn a_backing_file_whose_format_would_be_probed_is_refused() {
        let mut bytes = header().encode();
        let at = bytes.windows(5).position(|five| five == b"qcow2").unwrap();
        bytes[at..at + 5].copy_from_slice(b"raw  ");
        assert_eq!(Header::decode(&bytes), Err(Fault::BackingFormat));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            noise in proptest::collection::vec(any::<u8>(), 0..600),
            changes in proptest::collection::vec((0_usize..260, any::<u8>()), 0..8),
        ) {
            let _ = Header::decode(&noise);
            let mut bytes = header().encode();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = Header::decode(&bytes);
        }
    }
}
