//! A pool of files that can clone and keep snapshots by copying, and can be broken on purpose.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use sistemo_conformance::Place;
use sistemo_host::Changed;
use sistemo_host::directory::FileError;
use sistemo_host::sparse::{CopyPath, Extent};
use sistemo_model::{Access, Bytes, Filesystem, PoolName, Role, SnapshotName, Timestamp, VolumeId};
use sistemo_pools::{
    Clones, Content, Cost, Description, Draft, Facts, FilePool, FirstUse, Flaw, Format, Found,
    LiveCopies, LiveDisk, LiveSwitches, Location, Origin, OwnFilesystem, Pool, PoolError, Progress,
    Sharing, Snapshot, SnapshotDraft, Snapshots, Usage, Way,
};

/// How a pool is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    CloneSharesWrites,
    RemoveAlwaysSaysYes,
    RemoveLeavesTheVolume,
    FillLosesHoles,
    GrowLosesData,
    VerifyFindsNothing,
    SnapshotListLies,
    DraftIsVisible,
    RevertForgetsSize,
    ProbesTheFormat,
    DescribePanics,
    ThirdSnapshotIsEmpty,
    FullIsUntold,
    CommitsInSteps,
    SnapshotForgetsItsTime,
    ExaminesTheVolumeAlone,
    SnapshotsAreFree,
    LiveDraftStays,
}

#[derive(Debug)]
pub(crate) struct BrokenPool {
    inner: FilePool,
    snapshots: PathBuf,
    fault: Fault,
}

pub(crate) fn description() -> Description {
    let id = VolumeId::random();
    Description {
        id,
        name: id.short().parse().unwrap(),
        size: Bytes::from_mib(1),
        filesystem: Filesystem::None,
        role: Role::Data,
        boot: None,
        created: Timestamp::now(),
        history: Box::default(),
        unfinished: false,
        moving_from: None,
    }
}

impl BrokenPool {
    pub(crate) fn open(place: &Place, fault: Fault) -> Result<BrokenPool, PoolError> {
        let name = "broken".parse().unwrap();
        let directory = &place.directory;
        let inner = FilePool::open(name, directory, place.catalogue, FirstUse::Allowed)?;
        Ok(BrokenPool {
            inner,
            snapshots: directory.with_extension("snapshots"),
            fault,
        })
    }

    /// The powers here do not survive a kill, which is not the fault that is looked for then.
    fn has_powers(&self) -> bool {
        !self.is(Fault::CommitsInSteps)
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn data(&self, id: VolumeId) -> Result<PathBuf, PoolError> {
        let location = self.inner.open(id, Access::ReadOnly)?;
        Ok(location.path().to_owned())
    }

    /// Where the snapshots of a volume are; their names begin with a number that grows.
    fn past(&self, id: VolumeId) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    fn snapshot_files(&self, id: VolumeId) -> Vec<(SnapshotName, PathBuf)> {
        let Ok(entries) = fs::read_dir(self.past(id)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let behind_number = |file: &String| file[7..].parse().unwrap();
        let past = self.past(id);
        let files = names
            .iter()
            .map(|file| (behind_number(file), past.join(file)));
        files.collect()
    }

    /// Where a snapshot that is not there yet comes to be.
    fn new_snapshot(&self, id: VolumeId, name: &SnapshotName) -> Result<PathBuf, PoolError> {
        let files = self.snapshot_files(id);
        if files.iter().any(|(known, _)| known == name) {
            return Err(PoolError::SnapshotThere {
                pool: self.name().clone(),
                volume: id,
                snapshot: name.clone(),
            });
        }
        let last = files.last().map_or(0, |(_, path)| {
            let file = path.file_name().unwrap().to_str().unwrap();
            file[..6].parse::<u32>().unwrap()
        });
        fs::create_dir_all(self.past(id)).unwrap();
        Ok(self.past(id).join(format!("{:06}-{name}", last + 1)))
    }

    fn snapshot_file(&self, id: VolumeId, name: &SnapshotName) -> Result<PathBuf, PoolError> {
        let _ = self.inner.facts(id)?;
        let mut files = self.snapshot_files(id).into_iter();
        let found = files.find(|(known, _)| known == name);
        found
            .map(|(_, path)| path)
            .ok_or_else(|| PoolError::NoSuchSnapshot {
                pool: self.name().clone(),
                volume: id,
                snapshot: name.clone(),
            })
    }
}

fn copy(source: &Path, target: &Path) -> u64 {
    let source = File::open(source).unwrap();
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(target)
        .unwrap();
    let _ = sistemo_host::sparse::copy(&source, &target, &mut |_, _| {}).unwrap();
    source.metadata().unwrap().len()
}

impl Pool for BrokenPool {
    fn name(&self) -> &PoolName {
        self.inner.name()
    }

    fn driver(&self) -> &'static str {
        "broken"
    }

    fn directory(&self) -> &Path {
        self.inner.directory()
    }

    fn probe(&self) -> Result<(), PoolError> {
        self.inner.probe()
    }

    fn usage(&self) -> Result<Usage, PoolError> {
        self.inner.usage()
    }

    fn list(&self) -> Result<Vec<Found>, PoolError> {
        self.inner.list()
    }

    fn find(&self, id: VolumeId) -> Result<Option<Found>, PoolError> {
        self.inner.find(id)
    }

    fn draft(&self, description: &Description) -> Result<Box<dyn Draft + '_>, PoolError> {
        let inner = self.inner.draft(description)?;
        Ok(match self.fault {
            Fault::DraftIsVisible => {
                inner.commit()?;
                let content = self.inner.content(description.id, Access::ReadWrite)?;
                Box::new(VisibleDraft(content))
            }
            Fault::FillLosesHoles | Fault::CommitsInSteps => Box::new(BrokenDraft {
                inner,
                pool: self,
                description: description.clone(),
            }),
            _ => inner,
        })
    }

    fn remove(&self, id: VolumeId) -> Result<Changed, PoolError> {
        if self.is(Fault::RemoveLeavesTheVolume) {
            return Ok(Changed::Yes);
        }
        let changed = self.inner.remove(id)?;
        let _ = fs::remove_dir_all(self.past(id));
        Ok(if self.is(Fault::RemoveAlwaysSaysYes) {
            Changed::Yes
        } else {
            changed
        })
    }

    fn grow(&self, id: VolumeId, to: Bytes) -> Result<Changed, PoolError> {
        let before = self.inner.facts(id)?.size;
        let changed = self.inner.grow(id, to)?;
        if self.is(Fault::GrowLosesData) && changed == Changed::Yes {
            let mut content = self.inner.content(id, Access::ReadWrite)?;
            content.write_at(&[0; 512], before.get() - 512)?;
        }
        Ok(changed)
    }

    fn open(&self, id: VolumeId, access: Access) -> Result<Location, PoolError> {
        self.inner.open(id, access)
    }

    fn close(&self, id: VolumeId) -> Result<(), PoolError> {
        self.inner.close(id)
    }

    fn content(&self, id: VolumeId, access: Access) -> Result<Box<dyn Content>, PoolError> {
        let content = self.inner.content(id, access)?;
        Ok(if self.is(Fault::FullIsUntold) {
            Box::new(UntoldContent {
                inner: content,
                pool: self.name().clone(),
                volume: id,
            })
        } else {
            content
        })
    }

    fn describe(&self, description: &Description) -> Result<Changed, PoolError> {
        assert!(!self.is(Fault::DescribePanics), "nobody describes this");
        self.inner.describe(description)
    }

    fn description(&self, id: VolumeId) -> Result<Description, PoolError> {
        self.inner.description(id)
    }

    fn facts(&self, id: VolumeId) -> Result<Facts, PoolError> {
        let mut facts = self.inner.facts(id)?;
        if self.is(Fault::ProbesTheFormat) {
            let mut magic = [0; 4];
            self.inner
                .content(id, Access::ReadOnly)?
                .read_at(&mut magic, 0)?;
            if magic == *b"QFI\xfb" {
                facts.format = Format::Qcow2;
            }
        }
        Ok(facts)
    }

    fn verify(&self, id: VolumeId, recorded: Bytes) -> Result<Vec<Flaw>, PoolError> {
        if self.is(Fault::VerifyFindsNothing) {
            return Ok(Vec::new());
        }
        self.inner.verify(id, recorded)
    }

    fn examine(
        &self,
        id: VolumeId,
        recorded: Bytes,
        progress: Progress<'_>,
    ) -> Result<Vec<Flaw>, PoolError> {
        let flaws = self.verify(id, recorded)?;
        if flaws.contains(&Flaw::Missing) {
            return Ok(flaws);
        }
        let mut contents = vec![self.content(id, Access::ReadOnly)?];
        if self.has_powers() && !self.is(Fault::ExaminesTheVolumeAlone) {
            for snapshot in Snapshots::snapshots(self, id)? {
                contents.push(self.snapshot_content(id, &snapshot.name)?);
            }
        }
        let extents = contents.iter().map(|content| content.extents().unwrap());
        let total = extents.flatten().map(|extent| extent.length).sum();
        progress(total, total);
        Ok(flaws)
    }

    fn sharing(&self, id: VolumeId) -> Result<Option<Sharing>, PoolError> {
        let mut sharing = self.inner.sharing(id)?;
        if let Some(sharing) = &mut sharing {
            for (name, path) in self.snapshot_files(id) {
                let file = File::open(path).unwrap();
                let used = sistemo_host::sparse::used_bytes(&file).unwrap();
                let alone = if self.is(Fault::SnapshotsAreFree) {
                    0
                } else {
                    used
                };
                sharing.snapshots.insert(name, Bytes::new(alone));
            }
        }
        Ok(sharing)
    }

    fn clones(&self) -> Option<&dyn Clones> {
        self.has_powers().then_some(self as &dyn Clones)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        self.has_powers().then_some(self as &dyn Snapshots)
    }

    fn own_filesystem(&self) -> Option<&dyn OwnFilesystem> {
        None
    }
}

impl Clones for BrokenPool {
    fn clone_cost(&self) -> Cost {
        Cost::Copy
    }

    fn clone_volume(
        &self,
        origin: Origin<'_>,
        new: &Description,
        progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let path = match origin.snapshot {
            Some(name) => self.snapshot_file(origin.volume, name)?,
            None => self.data(origin.volume)?,
        };
        let mut draft = self.inner.draft(new)?;
        let _ = draft.fill_from(&File::open(&path).unwrap(), progress)?;
        draft.commit()?;
        if self.is(Fault::CloneSharesWrites) {
            let clone = self.data(new.id)?;
            fs::remove_file(&clone).unwrap();
            fs::hard_link(&path, &clone).unwrap();
        }
        Ok(Way::Copied)
    }
}

impl Snapshots for BrokenPool {
    fn snapshot_cost(&self) -> Cost {
        Cost::Copy
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<Snapshot>, PoolError> {
        let _ = self.inner.facts(volume)?;
        let lies = usize::from(self.is(Fault::SnapshotListLies));
        let files = self.snapshot_files(volume).into_iter().skip(lies);
        let snapshot = |(name, path): (SnapshotName, PathBuf)| {
            let meta = path.metadata().unwrap();
            Snapshot {
                name,
                created: meta.modified().unwrap().try_into().unwrap(),
                size: Bytes::new(meta.len()),
                alone: None,
            }
        };
        let mut snapshots: Vec<_> = files.map(snapshot).collect();
        snapshots.sort_by_key(|snapshot| snapshot.created);
        Ok(snapshots)
    }

    fn take_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        _disk: Option<&mut dyn LiveDisk>,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let data = self.data(volume)?;
        let before = self.snapshot_files(volume).len();
        let path = self.new_snapshot(volume, name)?;
        let length = copy(&data, &path);
        if self.is(Fault::ThirdSnapshotIsEmpty) && before == 2 {
            File::create(&path).unwrap().set_len(length).unwrap();
        }
        if !self.is(Fault::SnapshotForgetsItsTime) {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(created.into()).unwrap();
        }
        Ok(Way::Copied)
    }

    fn revert(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
        _progress: Progress<'_>,
    ) -> Result<Way, PoolError> {
        let path = self.snapshot_file(volume, snapshot)?;
        let mut description = self.inner.description(volume)?;
        let length = copy(&path, &self.data(volume)?);
        if !self.is(Fault::RevertForgetsSize) {
            description.size = Bytes::new(length);
            let _ = self.inner.describe(&description)?;
        }
        Ok(Way::Copied)
    }

    fn delete_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Changed, PoolError> {
        Ok(match self.snapshot_file(volume, snapshot) {
            Ok(path) => {
                fs::remove_file(path).unwrap();
                Changed::Yes
            }
            Err(PoolError::NoSuchSnapshot { .. }) => Changed::No,
            Err(error) => return Err(error),
        })
    }

    fn snapshot_content(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Box<dyn Content>, PoolError> {
        let path = self.snapshot_file(volume, snapshot)?;
        Ok(Box::new(SnapshotContent {
            size: Bytes::new(path.metadata().unwrap().len()),
            file: File::open(path).unwrap(),
            pool: self.name().clone(),
            volume,
        }))
    }

    fn open_snapshot(
        &self,
        volume: VolumeId,
        snapshot: &SnapshotName,
    ) -> Result<Option<Location>, PoolError> {
        let path = self.snapshot_file(volume, snapshot)?;
        Ok(Some(Location::RawFile(path)))
    }

    fn live_copies(&self) -> Option<&dyn LiveCopies> {
        Some(self)
    }

    fn live_switches(&self) -> Option<&dyn LiveSwitches> {
        None
    }
}

impl LiveCopies for BrokenPool {
    fn draft_snapshot(
        &self,
        volume: VolumeId,
        name: &SnapshotName,
        created: Timestamp,
        size: Bytes,
    ) -> Result<Box<dyn SnapshotDraft + '_>, PoolError> {
        let file = self.new_snapshot(volume, name)?;
        let drafts = self.past(volume).with_extension("drafts");
        let _ = fs::remove_dir_all(&drafts);
        fs::create_dir_all(&drafts).unwrap();
        let path = drafts.join(name.as_str());
        File::create(&path).unwrap().set_len(size.get()).unwrap();
        Ok(Box::new(LiveDraft {
            path,
            file,
            created,
            stays: self.is(Fault::LiveDraftStays),
        }))
    }
}

/// A snapshot that somebody else writes.
#[derive(Debug)]
struct LiveDraft {
    path: PathBuf,
    file: PathBuf,
    created: Timestamp,
    stays: bool,
}

impl SnapshotDraft for LiveDraft {
    fn raw_path(&self) -> &Path {
        &self.path
    }

    fn commit(self: Box<Self>) -> Result<(), PoolError> {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.set_modified(self.created.into()).unwrap();
        fs::hard_link(&self.path, &self.file).unwrap();
        Ok(())
    }
}

impl Drop for LiveDraft {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The bytes of a snapshot.
#[derive(Debug)]
struct SnapshotContent {
    file: File,
    size: Bytes,
    pool: PoolName,
    volume: VolumeId,
}

impl SnapshotContent {
    fn refusal(&self) -> PoolError {
        PoolError::OpenedReadOnly {
            pool: self.pool.clone(),
            volume: self.volume,
        }
    }
}

impl Content for SnapshotContent {
    fn size(&self) -> Bytes {
        self.size
    }

    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
        Ok(sistemo_host::sparse::next_data(&self.file, from, self.size.get()).unwrap())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
        self.file.read_exact_at(buffer, offset).unwrap();
        Ok(())
    }

    fn write_at(&mut self, _data: &[u8], _offset: u64) -> Result<(), PoolError> {
        Err(self.refusal())
    }

    fn make_hole(&mut self, _extent: Extent) -> Result<(), PoolError> {
        Err(self.refusal())
    }

    fn flush(&mut self) -> Result<(), PoolError> {
        Ok(())
    }
}

/// A draft that became a volume when it was begun.
#[derive(Debug)]
struct VisibleDraft(Box<dyn Content>);

impl Draft for VisibleDraft {
    fn raw_path(&self) -> Option<&Path> {
        None
    }

    fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
        Ok(&mut *self.0)
    }

    fn fill_from(
        &mut self,
        _source: &File,
        _progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        Ok(CopyPath::Copied)
    }

    fn commit(self: Box<Self>) -> Result<(), PoolError> {
        Ok(())
    }
}

/// A draft that fills or commits as it should not.
#[derive(Debug)]
struct BrokenDraft<'a> {
    inner: Box<dyn Draft + 'a>,
    pool: &'a BrokenPool,
    description: Description,
}

impl Draft for BrokenDraft<'_> {
    fn raw_path(&self) -> Option<&Path> {
        self.inner.raw_path()
    }

    fn content(&mut self) -> Result<&mut dyn Content, PoolError> {
        self.inner.content()
    }

    fn fill_from(
        &mut self,
        source: &File,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CopyPath, PoolError> {
        let way = self.inner.fill_from(source, progress)?;
        if self.pool.is(Fault::FillLosesHoles) {
            let end = source.metadata().unwrap().len();
            let content = self.inner.content()?;
            let mut piece = vec![0; 1 << 20];
            let mut at = 0;
            while at + (1 << 20) <= end {
                content.read_at(&mut piece, at)?;
                content.write_at(&piece, at)?;
                at += 1 << 20;
            }
            content.flush()?;
        }
        Ok(way)
    }

    fn commit(self: Box<Self>) -> Result<(), PoolError> {
        let BrokenDraft {
            inner,
            pool,
            description,
        } = *self;
        inner.commit()?;
        if pool.is(Fault::CommitsInSteps) {
            let path = pool.directory().join(format!("{}.json", description.id));
            fs::remove_file(path).unwrap();
            thread::sleep(Duration::from_millis(15));
            let _ = pool.inner.describe(&description)?;
        }
        Ok(())
    }
}

/// A content that tells of a full disk as of any other failure.
#[derive(Debug)]
struct UntoldContent {
    inner: Box<dyn Content>,
    pool: PoolName,
    volume: VolumeId,
}

impl UntoldContent {
    fn untold(&self, error: PoolError) -> PoolError {
        match error {
            PoolError::Full { action, .. } => PoolError::Volume {
                action,
                pool: self.pool.clone(),
                volume: self.volume,
                source: FileError::new(
                    "write",
                    Path::new("somewhere"),
                    std::io::Error::other("no"),
                ),
            },
            other => other,
        }
    }
}

impl Content for UntoldContent {
    fn size(&self) -> Bytes {
        self.inner.size()
    }

    fn next_extent(&self, from: u64) -> Result<Option<Extent>, PoolError> {
        self.inner.next_extent(from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), PoolError> {
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), PoolError> {
        let written = self.inner.write_at(data, offset);
        written.map_err(|error| self.untold(error))
    }

    fn make_hole(&mut self, extent: Extent) -> Result<(), PoolError> {
        self.inner.make_hole(extent)
    }

    fn flush(&mut self) -> Result<(), PoolError> {
        let flushed = self.inner.flush();
        flushed.map_err(|error| self.untold(error))
    }
}
