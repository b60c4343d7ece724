//! Looking for damage in one file, without reading its data.

use super::super::format::{CLUSTER, Entry, Fault, Pointer, TABLE_ENTRIES};
use super::refcounts::Refcounts;
use super::{Image, ImageError};

impl Image {
    /// Walks all tables: what they lead to is in the file, is counted, and is nobody else's.
    pub(in crate::qcow2) fn check(&self) -> Result<(), ImageError> {
        let mut counts = Refcounts::load(&self.file, &self.path, &self.header)?;
        let mut used = Used::default();
        let mut visit = |at: u64| -> Result<(), ImageError> {
            if at >= self.length {
                return Err(self.behind_end(at));
            }
            let counted = counts
                .count(&self.file, at / CLUSTER)
                .map_err(|error| self.failed("read", error))?;
            if counted == 0 {
                return Err(self.fault(Fault::Uncounted(at)));
            }
            if used.was_marked(at / CLUSTER) {
                return Err(self.fault(Fault::Shared(at)));
            }
            Ok(())
        };
        let l1_bytes = u64::from(self.header.l1_entries) * 8;
        let table_bytes = u64::from(self.header.refcount_table_clusters) * CLUSTER;
        for (start, bytes) in [
            (0, CLUSTER),
            (self.header.refcount_table_offset, table_bytes),
            (self.header.l1_offset, l1_bytes),
        ] {
            for at in (start..start + bytes).step_by(usize::try_from(CLUSTER).unwrap_or(1)) {
                visit(at)?;
            }
        }
        for raw in &self.l1 {
            let Pointer(at) = Pointer::decode(*raw).map_err(|fault| self.fault(fault))?;
            let Some(at) = at else { continue };
            visit(at)?;
            let table = self.read_table(at)?;
            for slot in 0..usize::try_from(TABLE_ENTRIES).unwrap_or(0) {
                let raw = table.number(slot);
                if raw == 0 {
                    continue;
                }
                let entry = Entry::decode(raw).map_err(|fault| self.fault(fault))?;
                if let Some(at) = entry.cluster() {
                    visit(at)?;
                }
            }
        }
        Ok(())
    }
}

/// The clusters that were seen, one bit each.
#[derive(Default)]
struct Used(Vec<u64>);

impl Used {
    fn was_marked(&mut self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / 64).unwrap_or(usize::MAX);
        let bit = 1 << (cluster % 64);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let marked = self.0[word] & bit != 0;
        self.0[word] |= bit;
        marked
    }
}
