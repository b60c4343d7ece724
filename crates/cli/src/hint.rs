//! What to type next after a failure.

use std::io::ErrorKind;

use sistemo::care::Obstacle;
use sistemo::doctor::package_of;
use sistemo::model::{MachineName, MachineState, VolumeName};
use sistemo::settings::SettingsError;
use sistemo::{ConfError, Error, ImageError, Kind, PoolError, causes};

use crate::failure::Failure;

/// What to type next, where there is something.
pub(crate) fn hint(failure: &Failure) -> Option<String> {
    match failure {
        Failure::Engine(error) | Failure::Execute(error) => missing_program(error)
            .or_else(|| full_pool(error))
            .or_else(|| engine_hint(error)),
        Failure::Usage { hint, .. } => Some(hint.clone()),
        Failure::NoHome => Some("name one with --data-dir DIR or SISTEMO_DATA_DIR".to_owned()),
        Failure::ConfirmationNeeded { does, .. } => Some(format!("-y {does} without asking")),
        Failure::Repeated { .. } => Some("name it once".to_owned()),
        Failure::Declined
        | Failure::Several { .. }
        | Failure::Output(_)
        | Failure::Terminal { .. }
        | Failure::Console { .. }
        | Failure::File { .. } => None,
    }
}

/// A cause that is a missing program is known by its text: what a machine's monitor tells
/// arrives from another process, as text only.
fn missing_program(error: &Error) -> Option<String> {
    causes(error).iter().find_map(|text| {
        let program = text.strip_suffix(" is not installed")?;
        Some(format!("sudo apt install {}", package_of(program)?))
    })
}

/// A pool that ran full is told by its driver, or by a program that wrote to it.
fn full_pool(error: &Error) -> Option<String> {
    let full = match error {
        Error::Pool { source, .. } => matches!(source, PoolError::Full { .. }),
        Error::FilesystemProgram { .. } => {
            let mut told = causes(error).into_iter();
            told.any(|text| text.contains("No space left on device"))
        }
        _ => false,
    };
    full.then(|| {
        "make room in the pool, or use another; `sistemo pool list` tells which have some"
            .to_owned()
    })
}

fn engine_hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::NotFound { kind, .. } => list(*kind),
        Error::Ambiguous {
            reference,
            candidates,
            ..
        } => tell_apart(reference, candidates),
        Error::NameTaken { kind, name } => another_name(*kind, name),
        Error::VolumeAttached { .. }
        | Error::VolumeNotAttached { .. }
        | Error::TooManyVolumes { .. }
        | Error::RootVolume { .. }
        | Error::VolumeRepeated { .. } => return attachment_hint(error),
        Error::MachineActive { machine, .. } => format!("sistemo machine stop {machine}"),
        Error::MachineInactive { machine, state, .. } => inactive_hint(machine, *state),
        Error::VolumeDisposable { .. }
        | Error::NothingToKeep { .. }
        | Error::NotATemplate { .. }
        | Error::TemplateActive { .. }
        | Error::TemplateNeeded { .. }
        | Error::MachineEphemeral { .. } => template_hint(error),
        Error::VolumeInUse { .. }
        | Error::MachineInUse { .. }
        | Error::SnapshotMissing { .. }
        | Error::CloneName { .. }
        | Error::NoSuchSnapshot { .. }
        | Error::NoSnapshots { .. }
        | Error::SnapshotTaken { .. }
        | Error::NotInTrash { .. }
        | Error::NameGone { .. }
        | Error::PoolNotEmpty { .. }
        | Error::SnapshotPinned { .. }
        | Error::VolumePinned { .. }
        | Error::InThatPool { .. }
        | Error::SnapshotsUnkept { .. }
        | Error::PinnedUnkept { .. }
        | Error::MovedWrongly { .. }
        | Error::StateNotKept { .. }
        | Error::PoolLacks { .. }
        | Error::PoolTooFull { .. }
        | Error::Exchange { .. }
        | Error::DiskFile { .. }
        | Error::ImageFile { .. }
        | Error::PlaceTooFull { .. }
        | Error::ChecksumDiffers { .. }
        | Error::EmptyInput { .. } => return history_hint(error),
        Error::NotLarger { .. }
        | Error::TooSmallForFilesystem { .. }
        | Error::FilesystemNotGrowable { .. }
        | Error::StorageTooSmall { .. }
        | Error::MemoryOutOfRange { .. }
        | Error::PortUnavailable { .. } => return size_hint(error),
        Error::NotRepairable {
            volume, obstacle, ..
        } => repair_hint(volume, obstacle),
        Error::NotAnswering { machine, .. }
        | Error::EndedEarly { machine, .. }
        | Error::Ssh { machine } => {
            format!("sistemo machine logs {machine}")
        }
        Error::Pool { .. }
        | Error::NoDefaultPool { .. }
        | Error::PoolMisconfigured { .. }
        | Error::DriverOptions { .. }
        | Error::PoolDriverChanged { .. }
        | Error::DriverUnusable { .. }
        | Error::PoolPlace { .. }
        | Error::StorageConf(_) => return pool_hint(error),
        Error::VolumeDamaged { volume, .. } => format!("sistemo volume show {volume}"),
        Error::Start { .. }
        | Error::Boot { .. }
        | Error::NoVmm(_)
        | Error::Vmm { .. }
        | Error::VolumeAccess { .. }
        | Error::Image {
            action: "build", ..
        } => "sistemo doctor".to_owned(),
        Error::Image { source, .. } => return disk_file_hint(source),
        Error::NoSpace(_) => "delete a volume or an image, or make room otherwise".to_owned(),
        Error::Overtaken(_) => "look again, and try again".to_owned(),
        Error::DataDirectory { .. } | Error::DataFile(_) | Error::NewerVersion { .. } => {
            return data_directory_hint(error);
        }
        Error::Busy { .. } => "try again when it has finished".to_owned(),
        Error::Settings(SettingsError::UnknownKey { known, .. }) => {
            format!("the settings are {}", known.join(", "))
        }
        Error::Settings(
            SettingsError::File(_) | SettingsError::Syntax { .. } | SettingsError::Value { .. },
        )
        | Error::PoolNeeded { .. }
        | Error::Stream { .. }
        | Error::ImageStore(_)
        | Error::FilesystemProgram { .. }
        | Error::Program { .. }
        | Error::Catalogue(_)
        | Error::DriverWork { .. }
        | Error::File { .. } => return None,
    })
}

/// What to type next where it matters which machine has a volume.
fn attachment_hint(error: &Error) -> Option<String> {
    Some(match error {
        // A root cannot be detached; it is known by the name that deploy gave it.
        Error::VolumeAttached { volume, machine } if *volume == machine.root_volume() => {
            preserving(machine)
        }
        Error::VolumeAttached { volume, machine } => {
            format!("sistemo machine volume detach {machine} {volume}")
        }
        Error::VolumeNotAttached { machine, .. } | Error::TooManyVolumes { machine, .. } => {
            format!("sistemo machine status {machine}")
        }
        Error::RootVolume { machine, .. } => preserving(machine),
        Error::VolumeRepeated { .. } => "name it once".to_owned(),
        _ => return None,
    })
}

/// What to type next after a failure with pools and their drivers.
fn pool_hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::Pool { .. } | Error::NoDefaultPool { .. } => list(Kind::Pool),
        Error::PoolMisconfigured { .. } | Error::DriverOptions { .. } => list(Kind::Driver),
        Error::PoolDriverChanged { pool, before, .. } => {
            format!("write `driver = {before}` again for {pool} in storage.conf")
        }
        Error::DriverUnusable { .. } => "docs/reference/driver-protocol.md".to_owned(),
        Error::PoolPlace { .. } => "give it a directory of its own".to_owned(),
        Error::StorageConf(error) => return storage_conf_hint(error),
        _ => return None,
    })
}

/// What to do about what cannot be mended here.
fn repair_hint(volume: &VolumeName, obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::DirtyLog => {
            format!("start the machine that mounts {volume}, stop it, and check again")
        }
        Obstacle::NoSafeRepair => format!(
            "copy what can be read in a machine that mounts it read-only, or go back, \
             if it has a snapshot: `sistemo volume revert {volume}`"
        ),
        Obstacle::Lost => format!(
            "go back to a snapshot, if it has one from before: `sistemo volume revert {volume} SNAPSHOT`; where \
             a guest has put something else on {volume}, nothing is wrong with it"
        ),
        Obstacle::Replaced => format!(
            "where it is lost, `sistemo volume move {volume} -P POOL` to a pool whose snapshots are \
             instant and repair it there; where a guest has put something else on {volume}, nothing is \
             wrong with it"
        ),
        Obstacle::Data(_) => {
            format!("go back to a snapshot, if it has one: `sistemo volume revert {volume}`")
        }
    }
}

/// What makes a machine run that does not.
fn inactive_hint(machine: &MachineName, state: MachineState) -> String {
    match state.as_str() {
        "paused" => format!("sistemo machine resume {machine}"),
        "stopped" => format!("sistemo machine start {machine}"),
        _ => format!("sistemo machine status {machine}"),
    }
}

/// What to type next where the data directory is not usable.
fn data_directory_hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::DataDirectory { .. } => {
            "choose another with --data-dir DIR or SISTEMO_DATA_DIR".to_owned()
        }
        Error::DataFile(_) => "make room there, or make it writable".to_owned(),
        Error::NewerVersion { .. } => {
            "use that version of Sistemo, or another directory with --data-dir DIR".to_owned()
        }
        _ => return None,
    })
}

/// How to be rid of a machine and of nothing else.
fn preserving(machine: &MachineName) -> String {
    format!("sistemo machine delete {machine} --preserve-storage")
}

/// What to type next where a size or a port is not right.
fn size_hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::NotLarger { size, .. } => format!("volumes only grow; name a size above {size}"),
        Error::TooSmallForFilesystem { minimum, .. } => {
            format!("name a size of {minimum} or more, or --fs none for a bare block device")
        }
        Error::FilesystemNotGrowable { volume, .. } => {
            format!("sistemo volume resize {volume} SIZE, then grow the filesystem in the guest")
        }
        Error::StorageTooSmall { needed, .. } => {
            format!("--storage {}M", needed.get().div_ceil(1 << 20))
        }
        Error::MemoryOutOfRange { .. } => "512M suits most guests".to_owned(),
        Error::PortUnavailable { .. } => {
            "choose another port: --expose HOST:GUEST, or `sistemo machine set M expose=HOST:GUEST`"
                .to_owned()
        }
        _ => return None,
    })
}

/// What to type next after a failure with templates and what is made from them.
fn template_hint(error: &Error) -> String {
    match error {
        Error::VolumeDisposable { template, .. } | Error::NothingToKeep { template, .. } => {
            format!(
                "keep what is to last on another volume (`sistemo machine volume attach`), or change \
             {template}"
            )
        }
        Error::NotATemplate { machine, .. } => {
            format!("name another machine; sistemo machine status {machine}")
        }
        Error::TemplateActive {
            template, volume, ..
        } => format!(
            "sistemo machine stop {template}; with `sistemo volume set {volume} \
             revisions_to_keep=1`, what its last stop left can be started from"
        ),
        Error::TemplateNeeded { machines, .. } => {
            let names: Vec<String> = machines.iter().map(ToString::to_string).collect();
            format!("`sistemo machine delete {}` first", names.join(" "))
        }
        _ => "only a machine that was deployed without --ephemeral can".to_owned(),
    }
}

/// What to type next after a failure with snapshots, clones, files and the trash.
fn history_hint(error: &Error) -> Option<String> {
    Some(match error {
        Error::VolumeInUse { volume, action, .. } => format!(
            "sistemo volume snapshot create {volume}, then {action} that with --snapshot NAME"
        ),
        Error::MachineInUse {
            machine, action, ..
        } => format!(
            "sistemo machine stop {machine}; or `sistemo machine snapshot {machine}`, then \
             {action} that with --snapshot NAME"
        ),
        Error::SnapshotMissing {
            machine, volumes, ..
        } => match volumes.as_slice() {
            [volume] => format!("sistemo volume snapshot list {volume}"),
            _ => format!("sistemo machine snapshot {machine}"),
        },
        Error::CloneName { volume, .. } => format!(
            "choose a shorter name for the clone, or `sistemo volume rename {volume} SHORTER`"
        ),
        Error::NoSuchSnapshot { volume, .. } => format!("sistemo volume snapshot list {volume}"),
        Error::NoSnapshots { volume } => format!("sistemo volume snapshot create {volume}"),
        Error::NotInTrash { .. } => "sistemo volume trash list".to_owned(),
        Error::NameGone { reference, .. } => {
            format!("sistemo volume trash restore {reference} --name NEW")
        }
        Error::PoolNotEmpty {
            pool,
            only_trash: true,
            ..
        } => format!("sistemo volume trash empty -P {pool}"),
        Error::PoolNotEmpty { .. } => list(Kind::Volume),
        Error::SnapshotTaken { .. } => "choose another name".to_owned(),
        Error::SnapshotPinned { volume, snapshot } => {
            format!("sistemo volume snapshot unpin {volume} {snapshot}")
        }
        Error::StateNotKept {
            volume, snapshot, ..
        } => {
            format!("sistemo volume revert {volume} {snapshot} --discard loses it")
        }
        Error::VolumePinned { volume, snapshots } => {
            let first = snapshots.first();
            let first = first.map_or("SNAPSHOT", |snapshot| snapshot.as_str());
            format!("sistemo volume snapshot unpin {volume} {first}")
        }
        Error::InThatPool { .. } => list(Kind::Pool),
        Error::SnapshotsUnkept { .. } => {
            "--without-snapshots leaves them behind, and they are lost; `sistemo pool drivers` tells \
             which pools keep some"
                .to_owned()
        }
        Error::PinnedUnkept {
            volume, snapshot, ..
        } => format!("sistemo volume snapshot unpin {volume} {snapshot}, or choose another pool"),
        Error::MovedWrongly { volume, .. } => format!(
            "the volume is where it was, as it was: sistemo volume show {volume}; the other pool is \
             not to be trusted"
        ),
        Error::PoolLacks { pool, .. } => format!(
            "sistemo pool show {pool} tells what it can; `sistemo pool drivers` what others can"
        ),
        // What comes from a file is copied wherever it goes.
        Error::PoolTooFull { action, .. } if action.starts_with("import ") => {
            "make room there, or name another pool with -P".to_owned()
        }
        Error::PoolTooFull { .. } => {
            "make room there, or use a pool that does not copy: `sistemo pool drivers`".to_owned()
        }
        Error::Exchange {
            action: "import", ..
        }
        | Error::EmptyInput { .. }
        | Error::DiskFile {
            source: ImageError::Empty { .. } | ImageError::NotAFile { .. },
            ..
        } => "import a disk image file; an empty volume is made with `sistemo volume create`"
            .to_owned(),
        Error::ImageFile {
            source: ImageError::File(error),
            ..
        } if error.source.kind() == ErrorKind::NotFound => {
            "name a file that is there, or an image: `sistemo image list`".to_owned()
        }
        Error::ImageFile { source, .. } => disk_file_hint(source).unwrap_or_else(|| {
            "sistemo image import FILE --name NAME --format raw|qcow2|vmdk|vhdx|vdi".to_owned()
        }),
        Error::DiskFile { source, .. } => return disk_file_hint(source),
        Error::PlaceTooFull { .. } => "make room there, or name another place".to_owned(),
        Error::ChecksumDiffers { .. } => {
            "get the file again: it is another one, or came damaged".to_owned()
        }
        Error::Exchange { .. } => "choose another file".to_owned(),
        _ => return None,
    })
}

/// What to do with a disk image file that cannot be used.
fn disk_file_hint(error: &ImageError) -> Option<String> {
    Some(match error {
        ImageError::NotOfFormat { .. } => {
            "name its format with --format; `--format raw` takes the file as it is".to_owned()
        }
        ImageError::ReadsAnotherFile { .. }
        | ImageError::UnsupportedDisk { .. }
        | ImageError::Encrypted { .. } => {
            "make one plain file of it where it comes from: `qemu-img convert -O qcow2 FILE whole.qcow2`"
                .to_owned()
        }
        ImageError::CutOff { .. } | ImageError::Corrupt { .. } => {
            "get the file again, or look at it with `qemu-img check`".to_owned()
        }
        _ => return None,
    })
}

/// How to name one of several, each told as `pgdata (a1b2…)`. In the trash all may have the name.
fn tell_apart(reference: &str, candidates: &[String]) -> String {
    let named_so = format!("{reference} (");
    if candidates.iter().all(|one| one.starts_with(&named_so)) {
        return "name it by its ID".to_owned();
    }
    format!("type more of the ID, or a name: {}", candidates.join(", "))
}

fn storage_conf_hint(error: &ConfError) -> Option<String> {
    match error {
        ConfError::NotWritable { file, .. } => Some(format!(
            "run it as a user who may write {}, or let SISTEMO_STORAGE_CONF name a file of your own",
            file.display()
        )),
        ConfError::Changed { .. } => Some("try again".to_owned()),
        ConfError::Unreadable { .. } | ConfError::Fault(_) => None,
    }
}

fn another_name(kind: Kind, taken: &str) -> String {
    match kind {
        Kind::Machine | Kind::Volume => {
            "choose another name, or delete or rename the other".to_owned()
        }
        Kind::Image => format!("choose another name, or `sistemo image delete {taken}`"),
        Kind::Pool | Kind::Driver | Kind::Snapshot => "choose another name".to_owned(),
    }
}

fn list(kind: Kind) -> String {
    match kind {
        Kind::Volume => "sistemo volume list",
        Kind::Machine => "sistemo machine list",
        Kind::Image => "sistemo image list; `sistemo image build debian` makes one",
        Kind::Pool => "sistemo pool list",
        Kind::Driver => "sistemo pool drivers",
        Kind::Snapshot => "sistemo volume snapshot list VOLUME",
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use sistemo_host::directory::FileError;
    use sistemo_host::program::ProgramError;

    use super::*;

    #[test]
    fn a_missing_program_leads_to_its_package_however_deep_it_is() {
        let source = ProgramError::NotInstalled {
            name: "mkfs.xfs".to_owned(),
        };
        let error = Error::Program {
            action: "make a filesystem",
            source,
        };
        let hint = hint(&Failure::from(error));
        assert_eq!(hint.as_deref(), Some("sudo apt install xfsprogs"));
    }

    #[test]
    fn a_pool_without_room_is_told_whoever_found_it_so() {
        let pool: sistemo::model::PoolName = "fast".parse().unwrap();
        let ran_full = Error::Pool {
            pool: pool.clone(),
            action: "create volume data".to_owned(),
            source: PoolError::Full {
                action: "create",
                pool: pool.clone(),
                volume: sistemo::model::VolumeId::random(),
                source: FileError::new(
                    "write",
                    "disk",
                    std::io::Error::from(ErrorKind::StorageFull),
                ),
            },
        };
        let program = Error::FilesystemProgram {
            action: "make",
            filesystem: sistemo::model::Filesystem::Ext4,
            volume: "data".parse().unwrap(),
            source: ProgramError::NotInstalled {
                name: "No space left on device".to_owned(),
            },
        };
        for error in [ran_full, program] {
            let hint = hint(&Failure::from(error)).unwrap();
            assert!(hint.starts_with("make room in the pool"), "{hint}");
        }
        let too_full = |action: &str| {
            let error = Error::PoolTooFull {
                pool: pool.clone(),
                action: action.to_owned(),
                needed: sistemo::model::Bytes::new(2),
                free: sistemo::model::Bytes::new(1),
            };
            hint(&Failure::from(error)).unwrap()
        };
        assert!(too_full("clone volume data").contains("pool drivers"));
        // Of a file there is nothing but a copy, in any pool.
        assert!(too_full("import volume data").ends_with("another pool with -P"));
    }

    #[test]
    fn a_program_of_no_known_package_has_no_invented_one() {
        let source = ProgramError::NotInstalled {
            name: "frobnicate".to_owned(),
        };
        let error = Error::Program {
            action: "frobnicate",
            source,
        };
        assert_eq!(hint(&Failure::from(error)), None);
    }
}
