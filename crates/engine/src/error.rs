//! What can be refused, and what can fail.
//!
//! A variant names the operation and the object and keeps what caused it as its source, whose
//! text it never repeats. Which words to add for a person is the caller's business.

use std::fmt;
use std::path::PathBuf;

use sistemo_catalog::CatalogError;
use sistemo_host::directory::FileError;
use sistemo_host::program::ProgramError;
use sistemo_images::Error as ImageError;
use sistemo_model::{
    Attachment, Bytes, Digest, Filesystem, ImageName, MachineName, MachineState, NameError,
    PoolName, Reference, SnapshotName, VolumeName,
};
use sistemo_pools::external::UnusableDriver;
use sistemo_pools::{ConfError, Fault, PoolError};
use sistemo_vmm::VmmError;

use crate::care::Obstacle;
use crate::pools::PlaceConflict;
use crate::settings::{Origin, SettingsError};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A machine.
    Machine,
    /// An image.
    Image,
    /// A pool.
    Pool,
    /// A pool's driver.
    Driver,
    /// A snapshot of a volume.
    Snapshot,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Volume => "volume",
            Kind::Machine => "machine",
            Kind::Image => "image",
            Kind::Pool => "pool",
            Kind::Driver => "driver",
            Kind::Snapshot => "snapshot",
        })
    }
}

impl From<CatalogError> for Error {
    /// What the catalogue refuses in the words of a user is passed on in those words.
    fn from(error: CatalogError) -> Error {
        let kind_of = |kind| match kind {
            sistemo_catalog::Kind::Volume => Kind::Volume,
            sistemo_catalog::Kind::Machine => Kind::Machine,
        };
        match error {
            CatalogError::NotFound { kind, reference } => Error::NotFound {
                kind: kind_of(kind),
                reference: reference.to_string(),
            },
            CatalogError::Ambiguous {
                kind,
                reference,
                candidates,
            } => Error::Ambiguous {
                kind: kind_of(kind),
                reference: reference.to_string(),
                candidates: candidates
                    .into_iter()
                    .map(|candidate| format!("{} ({})", candidate.name, candidate.id))
                    .collect(),
            },
            CatalogError::NameTaken { kind, name } => Error::NameTaken {
                kind: kind_of(kind),
                name,
            },
            CatalogError::VolumeAttached { volume, machine } => {
                Error::VolumeAttached { volume, machine }
            }
            CatalogError::NotAttached { volume, machine } => {
                Error::VolumeNotAttached { volume, machine }
            }
            CatalogError::NoPosition { machine } => Error::TooManyVolumes {
                machine,
                limit: Attachment::LIMIT,
            },
            CatalogError::Locked { object, holder } => Error::Busy {
                object: object.to_string(),
                holder,
            },
            CatalogError::Full { .. } => Error::NoSpace(error),
            CatalogError::Busy { .. } => Error::Busy {
                object: "the catalogue".to_owned(),
                holder: "other commands".to_owned(),
            },
            // The rules that the engine looks at before it acts: something changed in between.
            CatalogError::IdTaken { .. }
            | CatalogError::SshPortTaken { .. }
            | CatalogError::IllegalLifecycle { .. }
            | CatalogError::IllegalTransition { .. }
            | CatalogError::MachineActive { .. }
            | CatalogError::MachineStopped { .. }
            | CatalogError::BeingDeleted { .. }
            | CatalogError::PositionTaken { .. } => Error::Overtaken(error),
            CatalogError::File(source) => Error::DataFile(source),
            CatalogError::Damaged { .. }
            | CatalogError::Foreign { .. }
            | CatalogError::Newer { .. }
            | CatalogError::NotWritable { .. }
            | CatalogError::Unshareable { .. }
            | CatalogError::Database { .. }
            | CatalogError::DamagedRow { .. } => Error::Catalogue(error),
        }
    }
}

/// What can be refused, and what can fail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("{kind} {reference} does not exist")]
    NotFound {
        /// What kind of object.
        kind: Kind,
        /// How it was referred to.
        reference: String,
    },
    /// An ID prefix fits more than one object.
    #[error("{kind} {reference} is ambiguous: it may be {}", candidates.join(", "))]
    Ambiguous {
        /// What kind of object.
        kind: Kind,
        /// The prefix.
        reference: String,
        /// The names it fits.
        candidates: Vec<String>,
    },
    /// Nothing in the trash is meant by that.
    #[error("there is no volume {reference} in the trash")]
    NotInTrash {
        /// How it was referred to.
        reference: String,
    },
    /// The name belongs to another object of the kind, or is its ID.
    #[error("{kind} {name} already exists")]
    NameTaken {
        /// What kind of object.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// The name of a volume that is to be restored belongs to another one by now.
    #[error("cannot restore volume {volume}: another one has that name")]
    NameGone {
        /// The volume.
        volume: VolumeName,
        /// How it was referred to, which names no other one.
        reference: Reference,
    },
    /// The volume is held by a machine.
    #[error("volume {volume} is attached to {machine}")]
    VolumeAttached {
        /// The volume.
        volume: VolumeName,
        /// Who holds it.
        machine: MachineName,
    },
    /// The volume is not held by this machine.
    #[error("volume {volume} is not attached to {machine}")]
    VolumeNotAttached {
        /// The volume.
        volume: VolumeName,
        /// The machine that was named.
        machine: MachineName,
    },
    /// A machine's root volume cannot be detached.
    #[error("volume {volume} is the root of {machine} and cannot be detached")]
    RootVolume {
        /// The volume.
        volume: VolumeName,
        /// Whose root it is.
        machine: MachineName,
    },
    /// A volume was named twice for one machine.
    #[error("volume {volume} is named more than once")]
    VolumeRepeated {
        /// The volume.
        volume: VolumeName,
    },
    /// A machine has no place for another volume.
    #[error("machine {machine} already holds {limit} volumes")]
    TooManyVolumes {
        /// The machine.
        machine: MachineName,
        /// How many it can hold.
        limit: u8,
    },
    /// The operation needs a stopped machine.
    #[error("machine {machine} is {state}: cannot {action}")]
    MachineActive {
        /// The machine.
        machine: MachineName,
        /// What it is doing.
        state: MachineState,
        /// What was asked for: `attach volume pgdata`, `rename it`.
        action: String,
    },
    /// The operation needs a running machine.
    #[error("machine {machine} is {state}: cannot {action}")]
    MachineInactive {
        /// The machine.
        machine: MachineName,
        /// What it is doing.
        state: MachineState,
        /// What was asked for: `pause it`.
        action: &'static str,
    },
    /// A machine that is active writes to the volume, so it cannot be read as it is now.
    #[error("volume {volume} is in use by {machine}: cannot {action} it as it is now")]
    VolumeInUse {
        /// The volume.
        volume: VolumeName,
        /// The machine that uses it.
        machine: MachineName,
        /// What was asked for: `clone` or `export`.
        action: &'static str,
    },
    /// A machine that is active writes to its volumes, so they cannot be read as they are now.
    #[error("machine {machine} is {state}: cannot {action} it as it is now")]
    MachineInUse {
        /// The machine.
        machine: MachineName,
        /// What it is doing.
        state: MachineState,
        /// What was asked for: `clone`.
        action: &'static str,
    },
    /// Not all volumes of a machine have a snapshot of that name.
    #[error(
        "machine {machine} has no snapshot {snapshot}: {} no such snapshot",
        lack(volumes)
    )]
    SnapshotMissing {
        /// The machine.
        machine: MachineName,
        /// The name.
        snapshot: SnapshotName,
        /// The volumes that have none of that name.
        volumes: Vec<VolumeName>,
    },
    /// There is nothing of a volume to work on that is made anew at each start of its machine.
    #[error(
        "nothing can be done with volume {volume}: it is made from {template} at each start of \
         {machine}, and thrown away at each stop"
    )]
    VolumeDisposable {
        /// The volume.
        volume: VolumeName,
        /// The machine whose root it is.
        machine: MachineName,
        /// The volume it is made from.
        template: VolumeName,
    },
    /// All that a machine has is a root volume that is made anew at each start.
    #[error(
        "machine {machine} has nothing to keep: its only volume is made from {template} at each \
         start, and thrown away at each stop"
    )]
    NothingToKeep {
        /// The machine.
        machine: MachineName,
        /// The volume that its root is made from.
        template: VolumeName,
    },
    /// A machine's root is nothing that others can start from.
    #[error("machine {machine} cannot be a template: {reason}")]
    NotATemplate {
        /// The machine.
        machine: MachineName,
        /// Why not.
        reason: &'static str,
    },
    /// A template is in use, and no stop of its machine has left a revision to start from.
    #[error("machine {machine} starts from volume {volume}, which {template} ({state}) writes to")]
    TemplateActive {
        /// The machine that was to be started.
        machine: MachineName,
        /// The machine that uses the template.
        template: MachineName,
        /// What that is doing.
        state: MachineState,
        /// The template.
        volume: VolumeName,
    },
    /// The root volumes of machines are made from the volume.
    #[error("volume {volume} cannot be removed: {} from it", start(machines))]
    TemplateNeeded {
        /// The volume.
        volume: VolumeName,
        /// The machines.
        machines: Vec<MachineName>,
    },
    /// The machine is gone when it stops.
    #[error("machine {machine} is ephemeral, gone when it stops: cannot {action}")]
    MachineEphemeral {
        /// The machine.
        machine: MachineName,
        /// What was asked for: `restart it`.
        action: &'static str,
    },
    /// What a clone of a volume would be called is no name.
    #[error("a clone of volume {volume} cannot be named after machine {machine}")]
    CloneName {
        /// The volume.
        volume: VolumeName,
        /// The machine that is to have the clone.
        machine: MachineName,
        /// What is wrong with the name.
        #[source]
        source: NameError,
    },
    /// The volume has no snapshot of that name.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The volume.
        volume: VolumeName,
        /// The name.
        snapshot: SnapshotName,
    },
    /// The volume has no snapshot at all.
    #[error("volume {volume} has no snapshots")]
    NoSnapshots {
        /// The volume.
        volume: VolumeName,
    },
    /// The volume has a snapshot of that name already.
    #[error("volume {volume} has a snapshot {snapshot} already")]
    SnapshotTaken {
        /// The volume.
        volume: VolumeName,
        /// The name.
        snapshot: SnapshotName,
    },
    /// The snapshot is pinned.
    #[error("snapshot {snapshot} of volume {volume} is pinned")]
    SnapshotPinned {
        /// The volume.
        volume: VolumeName,
        /// The name.
        snapshot: SnapshotName,
    },
    /// What the volume holds cannot be kept, so it is not taken back either.
    #[error("cannot keep what volume {volume} holds now")]
    StateNotKept {
        /// The volume.
        volume: VolumeName,
        /// The snapshot it was to be taken back to.
        snapshot: SnapshotName,
        /// Why not.
        #[source]
        source: Box<Error>,
    },
    /// The volume has snapshots that are pinned, which would go with it.
    #[error("volume {volume} has pinned snapshots: {}", listed(snapshots))]
    VolumePinned {
        /// The volume.
        volume: VolumeName,
        /// The snapshots, oldest first; there is one at least.
        snapshots: Vec<SnapshotName>,
    },
    /// A volume was to be moved into the pool that it is in.
    #[error("volume {volume} is in pool {pool} already")]
    InThatPool {
        /// The volume.
        volume: VolumeName,
        /// The pool.
        pool: PoolName,
    },
    /// A volume that has snapshots was to be moved into a pool that keeps none.
    #[error("volume {volume} has {} that pool {pool} cannot keep", snapshots(*count))]
    SnapshotsUnkept {
        /// The volume.
        volume: VolumeName,
        /// How many snapshots it has.
        count: usize,
        /// The pool.
        pool: PoolName,
    },
    /// A volume with a pinned snapshot was to be moved into a pool that keeps none.
    #[error("snapshot {snapshot} of volume {volume} is pinned, and pool {pool} cannot keep it")]
    PinnedUnkept {
        /// The volume.
        volume: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
        /// The pool.
        pool: PoolName,
    },
    /// What came of a volume in another pool is not what it was copied from.
    #[error("pool {pool} does not hold volume {volume} as it was copied there: {what} differs")]
    MovedWrongly {
        /// The volume.
        volume: VolumeName,
        /// The pool.
        pool: PoolName,
        /// Where they differ.
        what: String,
    },
    /// The pool has not the power that the operation needs.
    #[error("pool {pool} cannot {what}")]
    PoolLacks {
        /// The pool.
        pool: PoolName,
        /// What it cannot: `keep snapshots`.
        what: &'static str,
    },
    /// The pool has too little room for a copy.
    #[error("pool {pool} has {free} free, and {needed} are needed to {action}")]
    PoolTooFull {
        /// The pool.
        pool: PoolName,
        /// What was to be done: `clone volume pgdata`.
        action: String,
        /// What it takes.
        needed: Bytes,
        /// What there is.
        free: Bytes,
    },
    /// A file cannot be made a volume, or a volume a file.
    #[error("cannot {action} {}: {reason}", path.display())]
    Exchange {
        /// `import` or `export to`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// A file that holds a disk cannot be read, or a disk not be written to one.
    #[error("cannot {action}")]
    DiskFile {
        /// What was tried: `import volume pgdata`.
        action: String,
        /// What is wrong with the file, or what the program said.
        #[source]
        source: ImageError,
    },
    /// A directory has too little room for a copy.
    #[error("{} has {free} free, and {needed} are needed to {action}", directory.display())]
    PlaceTooFull {
        /// The directory.
        directory: PathBuf,
        /// What was to be done: `export volume pgdata`.
        action: String,
        /// What it takes.
        needed: Bytes,
        /// What there is.
        free: Bytes,
    },
    /// The bytes of a volume are not those that were expected.
    #[error("the content of volume {volume} has the SHA-256 {found} instead of {expected}")]
    ChecksumDiffers {
        /// The volume.
        volume: VolumeName,
        /// What it should have been.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// What a volume is read from or written to, other than a file, broke.
    #[error("cannot {action} volume {volume}")]
    Stream {
        /// `import` or `export`.
        action: &'static str,
        /// The volume.
        volume: VolumeName,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// What is to be imported has nothing in it.
    #[error("there is nothing to import as volume {volume}: the input is empty")]
    EmptyInput {
        /// The volume it was to be.
        volume: VolumeName,
    },
    /// Volumes only grow.
    #[error("volume {volume} has {size} already; {asked} would not make it larger")]
    NotLarger {
        /// The volume.
        volume: VolumeName,
        /// Its size.
        size: Bytes,
        /// The size asked for.
        asked: Bytes,
    },
    /// The filesystem needs more room.
    #[error("{filesystem} needs at least {minimum}; {asked} is too small")]
    TooSmallForFilesystem {
        /// The filesystem.
        filesystem: Filesystem,
        /// What it needs.
        minimum: Bytes,
        /// The size asked for.
        asked: Bytes,
    },
    /// Only a clean ext4 on the bare volume can be grown from outside.
    #[error("the filesystem of volume {volume} cannot be grown: {reason}")]
    FilesystemNotGrowable {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        reason: &'static str,
    },
    /// What is wrong with a volume cannot be mended here.
    #[error("the {what} of volume {volume} cannot be repaired: {obstacle}")]
    NotRepairable {
        /// The volume.
        volume: VolumeName,
        /// `data` or `filesystem`.
        what: &'static str,
        /// Why not.
        obstacle: Obstacle,
    },
    /// The root volume would be smaller than the image.
    #[error("image {image} needs {needed}; a root volume of {asked} is too small")]
    StorageTooSmall {
        /// The image, or the file deployed.
        image: String,
        /// Its size.
        needed: Bytes,
        /// The size asked for.
        asked: Bytes,
    },
    /// The memory is outside what a machine can have here.
    #[error(
        "{asked} of memory is outside the {minimum} to {maximum} that a machine can have on this host"
    )]
    MemoryOutOfRange {
        /// The size asked for.
        asked: Bytes,
        /// The least that boots.
        minimum: Bytes,
        /// The host's memory.
        maximum: Bytes,
    },
    /// The host port is in use by another program or machine.
    #[error("port {address} cannot be exposed")]
    PortUnavailable {
        /// The address asked for.
        address: std::net::SocketAddr,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The machine was started and does not answer SSH. It runs on.
    #[error("machine {machine} did not answer within {seconds} s; it was left running")]
    NotAnswering {
        /// The machine.
        machine: MachineName,
        /// How long it was given.
        seconds: u64,
    },
    /// The machine ended before it answered.
    #[error(
        "machine {machine} ended before it answered ({how}){}",
        last_words(console)
    )]
    EndedEarly {
        /// The machine.
        machine: MachineName,
        /// How it ended: `clean`, `crashed`, …
        how: String,
        /// The last it wrote to its console.
        console: String,
    },
    /// The machine's monitor could not start it.
    #[error("cannot start machine {machine}")]
    Start {
        /// The machine.
        machine: MachineName,
        /// What its monitor told.
        #[source]
        source: MonitorError,
    },
    /// SSH could not reach the machine or was not let in.
    #[error("cannot run a command on machine {machine} over SSH")]
    Ssh {
        /// The machine.
        machine: MachineName,
    },
    /// A volume's file is missing or damaged.
    #[error("volume {volume} is not usable: {reason}")]
    VolumeDamaged {
        /// The volume.
        volume: VolumeName,
        /// What is wrong with it.
        reason: String,
    },
    /// The pool refused or failed.
    #[error("pool {pool} cannot {action}")]
    Pool {
        /// The pool.
        pool: PoolName,
        /// What was tried: `create volume pgdata`.
        action: String,
        /// What its driver answered.
        #[source]
        source: PoolError,
    },
    /// The configuration of the pools as a whole is not usable, or cannot be changed.
    #[error(transparent)]
    StorageConf(#[from] ConfError),
    /// The configuration of one pool is not usable.
    #[error("pool {pool} is not usable")]
    PoolMisconfigured {
        /// The pool.
        pool: String,
        /// What is wrong with it.
        #[source]
        source: Fault,
    },
    /// A pool holds volumes that another driver has made.
    #[error("pool {pool} holds volumes of driver {before} and cannot be used with driver {now}")]
    PoolDriverChanged {
        /// The pool.
        pool: PoolName,
        /// The driver that made them.
        before: String,
        /// The driver it is given now.
        now: String,
    },
    /// A driver that is there cannot be used.
    #[error("driver {driver} cannot be used")]
    DriverUnusable {
        /// The driver, as it was named.
        driver: String,
        /// What is wrong with it.
        #[source]
        source: UnusableDriver,
    },
    /// A pool cannot be in its directory.
    #[error("pool {pool} cannot be in {}: {conflict}", directory.display())]
    PoolPlace {
        /// The pool.
        pool: PoolName,
        /// The directory.
        directory: PathBuf,
        /// Why it cannot.
        conflict: PlaceConflict,
    },
    /// The setting for volumes that name no pool names none that there is.
    #[error("pool {pool}, the `default_pool` from {origin}, does not exist")]
    NoDefaultPool {
        /// The pool.
        pool: PoolName,
        /// Where the setting came from.
        origin: Origin,
    },
    /// A pool that something needs cannot be removed.
    #[error("pool {pool} cannot be removed: {reason}")]
    PoolNeeded {
        /// The pool.
        pool: PoolName,
        /// What needs it.
        reason: String,
    },
    /// Something cannot be done to a pool that holds volumes.
    #[error("pool {pool} cannot {action}: it holds {what}")]
    PoolNotEmpty {
        /// The pool.
        pool: PoolName,
        /// What was tried: `be removed`.
        action: &'static str,
        /// What it holds: `volume pgdata`, `3 volumes`, `2 volumes in the trash`.
        what: String,
        /// Whether all of it is in the trash.
        only_trash: bool,
    },
    /// An image could not be made, read or deleted.
    #[error("cannot {action} image {image}")]
    Image {
        /// What was tried.
        action: &'static str,
        /// The image.
        image: ImageName,
        /// Why it did not work.
        #[source]
        source: ImageError,
    },
    /// A file to deploy from is not usable.
    #[error("cannot deploy from {}", path.display())]
    ImageFile {
        /// The file.
        path: PathBuf,
        /// Why it is not.
        #[source]
        source: ImageError,
    },
    /// The image store failed.
    #[error("the image store is not usable")]
    ImageStore(#[source] ImageError),
    /// The VMM refused or failed.
    #[error("cannot {action} machine {machine}")]
    Vmm {
        /// What was tried.
        action: &'static str,
        /// The machine.
        machine: MachineName,
        /// What the VMM answered.
        #[source]
        source: VmmError,
    },
    /// A program of this host cannot reach a volume's bytes.
    #[error("cannot open volume {volume} for a program")]
    VolumeAccess {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        #[source]
        source: VmmError,
    },
    /// The host has no usable VMM.
    #[error("this host cannot run machines")]
    NoVmm(#[source] VmmError),
    /// A program that makes or checks a filesystem failed or is missing.
    #[error("cannot {action} {filesystem} on volume {volume}")]
    FilesystemProgram {
        /// `make`, `grow`, `check` or `repair`.
        action: &'static str,
        /// The filesystem.
        filesystem: Filesystem,
        /// The volume.
        volume: VolumeName,
        /// What the program answered.
        #[source]
        source: ProgramError,
    },
    /// A program that an operation needs failed or is missing.
    #[error("cannot {action}")]
    Program {
        /// What it was needed for.
        action: &'static str,
        /// What it answered.
        #[source]
        source: ProgramError,
    },
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    DataDirectory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file in the data directory cannot be used.
    #[error("cannot work in the data directory")]
    DataFile(#[source] FileError),
    /// The data directory was last used by a newer version of this program.
    #[error("the data directory {} belongs to a newer version of Sistemo", path.display())]
    NewerVersion {
        /// The directory.
        path: PathBuf,
        /// Which versions.
        #[source]
        source: CatalogError,
    },
    /// The catalogue cannot be used.
    #[error("the catalogue is not usable")]
    Catalogue(#[source] CatalogError),
    /// The catalogue has no room to record what was to be done.
    #[error("no space is left in the data directory")]
    NoSpace(#[source] CatalogError),
    /// Another command changed something at the same time, so that this one no longer fits.
    #[error("another command was faster")]
    Overtaken(#[source] CatalogError),
    /// What the machine boots with is missing, or cannot be told who it is.
    #[error("cannot prepare machine {machine} to boot")]
    Boot {
        /// The machine.
        machine: MachineName,
        /// What is missing or wrong.
        #[source]
        source: ImageError,
    },
    /// Another operation holds the object for too long.
    #[error("{object} is in use by {holder}")]
    Busy {
        /// What it works on: `volume a1b2…`.
        object: String,
        /// Who it is: `process 123 (sistemo volume resize pgdata 10G)`.
        holder: String,
    },
    /// A file operation failed.
    #[error("cannot {action}")]
    File {
        /// What it was part of: `read the console log of db1`.
        action: String,
        /// What failed.
        #[source]
        source: FileError,
    },
    /// The options for a driver that is to be checked are not usable.
    #[error("driver {driver} cannot be checked with these options")]
    DriverOptions {
        /// The driver, as it was named.
        driver: String,
        /// What is wrong with them.
        #[source]
        source: Fault,
    },
    /// The process that a check of a driver started cannot go on.
    #[error("the work of a driver check failed: {reason}")]
    DriverWork {
        /// Why.
        reason: String,
    },
    /// The settings are not usable.
    #[error("the settings are not usable")]
    Settings(#[from] SettingsError),
}

fn listed(names: &[SnapshotName]) -> String {
    let names: Vec<&str> = names.iter().map(SnapshotName::as_str).collect();
    names.join(", ")
}

/// `volume a has`, `volumes a, b have`.
fn lack(volumes: &[VolumeName]) -> String {
    let names: Vec<&str> = volumes.iter().map(VolumeName::as_str).collect();
    match names.as_slice() {
        [one] => format!("volume {one} has"),
        several => format!("volumes {} have", several.join(", ")),
    }
}

fn snapshots(count: usize) -> String {
    match count {
        1 => "a snapshot".to_owned(),
        several => format!("{several} snapshots"),
    }
}

/// `machine a starts`, `machines a, b start`.
fn start(machines: &[MachineName]) -> String {
    let names: Vec<&str> = machines.iter().map(MachineName::as_str).collect();
    match names.as_slice() {
        [one] => format!("machine {one} starts"),
        several => format!("machines {} start", several.join(", ")),
    }
}

fn last_words(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; its console ends with:\n{console}")
    }
}

/// What a machine's monitor told about a start that failed. It comes from another process, so
/// only the text of each cause is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorError {
    message: String,
    cause: Option<Box<MonitorError>>,
}

impl MonitorError {
    /// Rebuilds the error from its texts, the outermost first.
    #[must_use]
    pub fn from_texts(texts: Vec<String>) -> MonitorError {
        let mut cause = None;
        for message in texts.into_iter().rev() {
            cause = Some(Box::new(MonitorError { message, cause }));
        }
        cause.map_or_else(
            || MonitorError {
                message: "its monitor ended without a word".to_owned(),
                cause: None,
            },
            |error| *error,
        )
    }
}

impl fmt::Display for MonitorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for MonitorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// The texts of an error and its causes, the outermost first.
#[must_use]
pub fn causes(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect()
}
