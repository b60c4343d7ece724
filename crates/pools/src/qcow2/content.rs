//! The bytes of a volume that is a chain of qcow2 files.

use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, PoolName, VolumeId};

use super::chain::{self, Chain};
use super::format::CLUSTER;
use super::image::ImageError;
use crate::error::Subject;
use crate::{Content, PoolError};

/// An open chain of files, of which only the first is written.
#[derive(Debug)]
pub(super) struct Qcow2Content {
    pub(super) chain: Chain,
    pub(super) pool: PoolName,
    pub(super) volume: VolumeId,
    pub(super) size: Bytes,
    pub(super) access: Access,
}

impl Qcow2Content {
    fn subject(&self) -> Subject<'_> {
        Subject {
            pool: &self.pool,
            volume: self.volume,
        }
    }

    fn failed(&self, action: &'static str, error: ImageError) -> PoolError {
        self.subject().image(action, error)
    }

    fn check_within(&self, offset: u64, length: u64) -> Result<(), PoolError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size.get() => Ok(()),
            _ => Err(PoolError::Outside {
                volume: self.volume,
                size: self.size,
                offset,
                length,
            }),
        }
    }

    fn check_writable(&self) -> Result<(), PoolError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(PoolError::OpenedReadOnly {
                pool: self.pool.clone(),
                volume: self.volume,
            }),
        }
    }

    /// Writes a part of one cluster.
    fn write_part(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let Some((top, beneath)) = self.chain.images.split_first_mut() else {
            return Ok(());
        };
        let cluster = offset / CLUSTER;
        let within = usize::try_from(offset % CLUSTER).unwrap_or(0);
        top.write(cluster, within, data, &mut |whole| {
            chain::read_cluster(beneath, whole, cluster * CLUSTER)
        })
    }

    fn write_all(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = usize::try_from(CLUSTER - at % CLUSTER).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at(within.min(rest.len()));
            self.write_part(part, at)?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn clear_cluster(&mut self, cluster: u64) -> Result<(), ImageError> {
        let Some((top, beneath)) = self.chain.images.split_first_mut() else {
            return Ok(());
        };
        let shows = chain::has_data(beneath, cluster)?;
        top.clear(cluster, shows)
    }

    fn clear_part(&mut self, from: u64, to: u64) -> Result<(), ImageError> {
        if from >= to || !chain::has_data(&self.chain.images, from / CLUSTER)? {
            return Ok(());
        }
        let length = usize::try_from(to - from).unwrap_or(0);
        if let Some(top) = self.chain.images.first_mut() {
            let within = usize::try_from(from % CLUSTER).unwrap_or(0);
            if top.punch(from / CLUSTER, within, length)? {
                return Ok(());
            }
        }
        self.write_part(&vec![0; length], from)
    }

    fn clear(&mut self, hole: Extent) -> Result<(), ImageError> {
        let first = hole.offset.div_ceil(CLUSTER);
        // What is behind the end of the volume in its last cluster is nobody's.
        let end = if hole.end() == self.size.get() {
            hole.end().div_ceil(CLUSTER)
        } else {
            hole.end() / CLUSTER
        };
        if first > end {
            return self.clear_part(hole.offset, hole.end());
        }
        self.clear_part(hole.offset, (first * CLUSTER).min(hole.end()))?;
        let mut cluster = chain::next_mapped(&self.chain.images, first, end);
        while cluster < end {
            self.clear_cluster(cluster)?;
            cluster = chain::next_mapped(&self.chain.images, cluster + 1, end);
        }
        self.clear_part(end * CLUSTER, hole.end())
    }

    /// Writes data, but for the clusters of which all of it is zeros and which read so already.
    pub(super) fn write_data(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = usize::try_from(CLUSTER - at % CLUSTER).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at(within.min(rest.len()));
            let written = self.write_unless_zeros(part, at);
            written.map_err(|error| self.failed("write", error))?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    fn write_unless_zeros(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let zeros = data.iter().all(|byte| *byte == 0);
        if zeros && !chain::has_data(&self.chain.images, offset / CLUSTER)? {
            return Ok(());
        }
        self.write_part(data, offset)
    }

    /// Writes what is kept of the tables, so that who opens the volume next sees all of it.
    pub(super) fn write_back(&mut self) -> Result<(), PoolError> {
        let Some(top) = self.chain.images.first_mut() else {
            return Ok(());
        };
        let written = top.write_back();
        written.map_err(|error| self.failed("write", error))
    }
}

impl Content for Qcow2Content {
    fn size(&self) -> Bytes {
        self.size
    }

    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
        chain::next_extent(&self.chain.images, from)
            .map_err(|error| self.failed("find the data of", error))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
        self.check_within(offset, buffer.len() as u64)?;
        chain::read(&self.chain.images, buffer, offset).map_err(|error| self.failed("read", error))
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError> {
        self.check_writable()?;
        self.check_within(offset, data.len() as u64)?;
        self.write_all(data, offset)
            .map_err(|error| self.failed("write", error))
    }

    fn make_hole(&mut self, extent: Extent) -> Result<(), PoolError> {
        self.check_writable()?;
        self.check_within(extent.offset, extent.length)?;
        if extent.length == 0 {
            return Ok(());
        }
        self.clear(extent)
            .map_err(|error| self.failed("make a hole in", error))
    }

    fn flush(&mut self) -> Result<(), PoolError> {
        let Some(top) = self.chain.images.first_mut() else {
            return Ok(());
        };
        let flushed = match self.access {
            Access::ReadWrite => top.flush(),
            Access::ReadOnly => Ok(()),
        };
        flushed.map_err(|error| self.failed("flush", error))
    }
}

impl Drop for Qcow2Content {
    fn drop(&mut self) {
        if self.access == Access::ReadWrite
            && let Err(error) = self.write_back()
        {
            tracing::warn!(%error, volume = %self.volume, "a part of what was written is lost");
        }
    }
}
