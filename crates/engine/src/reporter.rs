//! How an operation tells about itself while it runs.

use std::fmt;
use std::path::PathBuf;

use sistemo_model::{Bytes, ImageName, MachineName, PoolName, Timestamp, VolumeName};

/// Listens to running operations. All of it is for people: nothing depends on being heard.
pub trait Reporter: Send + Sync {
    /// A stage begins that may take a while, such as `building image debian`.
    fn stage(&self, text: &str);
    /// The stage has done `done` of `total` bytes.
    fn progress(&self, done: u64, total: u64);
    /// The last stage is over, well or not.
    fn stage_over(&self);
    /// Something worth knowing happened.
    fn notice(&self, notice: &Notice);
}

/// Something worth knowing that is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An operation that was cut short was undone or finished.
    Recovered {
        /// What was done about it.
        what: String,
    },
    /// An operation that was cut short could not be undone or finished yet; every command tries
    /// again.
    LeftForLater {
        /// Why not.
        reason: String,
    },
    /// An image cannot be used; only deleting it helps.
    DamagedImage {
        /// The image.
        name: ImageName,
        /// What is wrong with it.
        reason: String,
    },
    /// A renamed volume is attached, so its name under `/dev/disk/by-id` changes.
    DeviceNameChanged {
        /// The volume under its new name.
        volume: VolumeName,
        /// The machine that holds it.
        machine: MachineName,
    },
    /// A guest did not power off in time and was ended.
    ForcedAfterTimeout {
        /// The machine.
        machine: MachineName,
        /// How long it was given, in seconds.
        seconds: u64,
    },
    /// A root volume that is made anew at each start of its machine is in no snapshot of that.
    RootLeftOut {
        /// The machine.
        machine: MachineName,
        /// The volume that its root is made from.
        template: VolumeName,
    },
    /// A machine's volume is copied while the machine runs on.
    CopiedMeanwhile {
        /// The machine.
        machine: MachineName,
        /// The volume.
        volume: VolumeName,
        /// The volume's pool, which has no quicker way.
        pool: PoolName,
    },
    /// A guest's filesystems could not be frozen: a snapshot of them is as after a power cut.
    NotFrozen {
        /// The machine.
        machine: MachineName,
        /// Why not.
        reason: String,
    },
    /// A machine's processors are held until its volume has been copied.
    HeldForCopy {
        /// The machine.
        machine: MachineName,
        /// The volume.
        volume: VolumeName,
    },
    /// A machine stopped cleanly, and no revision of a volume of its could be kept.
    NoRevision {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        reason: String,
    },
    /// A volume went back to a snapshot; its machine has others, which did not.
    RevertedAlone {
        /// The volume.
        volume: VolumeName,
        /// The machine that holds it.
        machine: MachineName,
    },
    /// A machine that was made of another does not expose ports that the other does.
    PortsNotPassedOn {
        /// The new machine.
        machine: MachineName,
        /// The machine it was made of.
        source: MachineName,
        /// The guest ports.
        ports: Vec<u16>,
    },
    /// The guest of a machine that was made of another cannot be told all of who it is.
    IdentityNotTold {
        /// The new machine.
        machine: MachineName,
        /// The machine it was made of.
        source: MachineName,
        /// Whether it boots by the firmware of its own disk, so that it has no kernel command
        /// line of ours.
        by_firmware: bool,
    },
    /// The filesystem of a volume is repaired, and the volume could not be kept as it was without
    /// a copy.
    NothingKept {
        /// The volume.
        volume: VolumeName,
        /// Its pool.
        pool: PoolName,
    },
    /// The filesystem of a volume could not tell what it does not use.
    OnlyZerosTrimmed {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        reason: String,
    },
    /// What was given back of a volume is still held by its snapshots.
    SnapshotsHold {
        /// The volume.
        volume: VolumeName,
    },
    /// A machine's root volume was copied from its template at a start, since its pool cannot
    /// share data.
    TemplateCopied {
        /// The machine.
        machine: MachineName,
        /// The volume that was copied.
        volume: VolumeName,
        /// How much that was.
        copied: Bytes,
    },
    /// The machine of a template writes to it, so what its last stop has left was started from.
    StartsFromRevision {
        /// The machine that starts.
        machine: MachineName,
        /// The machine of the template.
        template: MachineName,
        /// When it stopped.
        created: Timestamp,
    },
    /// A machine was gone when it stopped.
    EphemeralGone {
        /// The machine.
        machine: MachineName,
        /// Its volumes that stay.
        kept: Vec<VolumeName>,
    },
    /// Guests run much slower than they could.
    SlowAccelerator {
        /// Why.
        reason: String,
    },
    /// A pool was removed; its own filesystem could not be unmounted.
    StaysMounted {
        /// The pool.
        pool: PoolName,
        /// Why not.
        reason: String,
    },
    /// A pool's volumes are gone with the next boot.
    PoolInMemory {
        /// The pool.
        pool: PoolName,
        /// Its directory.
        directory: PathBuf,
    },
    /// A deleted volume is gone for good, since the room that it took was needed.
    TrashGivenBack {
        /// The name it had.
        volume: VolumeName,
        /// Its pool.
        pool: PoolName,
        /// What it took there.
        used: Bytes,
    },
    /// Another free port was taken, since the machine's own SSH port is in use on the host.
    SshPortChanged {
        /// The machine.
        machine: MachineName,
        /// Its new port.
        port: u16,
    },
}

impl Notice {
    /// Writes what is told of machines that were made of others, or are gone with their stop.
    fn fmt_of_machines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::PortsNotPassedOn {
                machine,
                source,
                ports,
            } => {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{source} keeps the host's ports that lead to its guest's {}; {machine} exposes \
                     none of them",
                    ports.join(", ")
                )
            }
            Notice::IdentityNotTold {
                machine,
                source,
                by_firmware: true,
            } => write!(
                f,
                "{machine} boots from its own disk: host name, machine-id and SSH host keys are \
                 those of {source} until they are changed in the guest"
            ),
            Notice::IdentityNotTold {
                machine,
                source,
                by_firmware: false,
            } => write!(
                f,
                "{machine} is of an imported image: its SSH host keys are those of {source}, \
                 unless its system makes new ones for another machine-id"
            ),
            Notice::RootLeftOut { machine, template } => write!(
                f,
                "the root volume of {machine} is left out: it is made from {template} at each start"
            ),
            Notice::TemplateCopied {
                machine,
                volume,
                copied,
            } => write!(
                f,
                "{volume} was copied for {machine}, {copied}, as at each start: nothing can be shared here"
            ),
            Notice::StartsFromRevision {
                machine,
                template,
                created,
            } => write!(
                f,
                "{template} is in use: {machine} starts from what its stop of {created:.0} left"
            ),
            Notice::EphemeralGone { machine, kept } if kept.is_empty() => {
                write!(f, "{machine} was ephemeral and is gone")
            }
            Notice::EphemeralGone { machine, kept } => {
                let kept: Vec<&str> = kept.iter().map(VolumeName::as_str).collect();
                write!(
                    f,
                    "{machine} was ephemeral and is gone; kept {}",
                    kept.join(", ")
                )
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Recovered { what } => write!(f, "recovered: {what}"),
            Notice::LeftForLater { reason } => {
                write!(f, "what was cut short could not be tidied up yet: {reason}")
            }
            Notice::DamagedImage { name, reason } => {
                write!(f, "image {name} is of no use until it is deleted: {reason}")
            }
            Notice::DeviceNameChanged { volume, machine } => write!(
                f,
                "{volume} is attached to {machine}: its name under /dev/disk/by-id changes with it"
            ),
            Notice::ForcedAfterTimeout { machine, seconds } => {
                write!(
                    f,
                    "{machine} did not power off within {seconds} s and was forced"
                )
            }
            Notice::CopiedMeanwhile {
                machine,
                volume,
                pool,
            } => write!(
                f,
                "{volume} is copied while {machine} runs on: a snapshot costs that in pool {pool}"
            ),
            Notice::NotFrozen { machine, reason } => write!(
                f,
                "the filesystems of {machine} are kept as after a power cut: {reason}"
            ),
            Notice::HeldForCopy { machine, volume } => {
                write!(f, "{machine} is paused until {volume} has been copied")
            }
            Notice::NoRevision { volume, reason } => {
                write!(f, "no revision of {volume} could be kept: {reason}")
            }
            Notice::RevertedAlone { volume, machine } => write!(
                f,
                "only {volume} goes back: the other volumes of {machine} stay as they are"
            ),
            Notice::NothingKept { volume, pool } => write!(
                f,
                "no snapshot of {volume} was kept before its repair: pool {pool} has none that are instant"
            ),
            Notice::OnlyZerosTrimmed { volume, reason } => write!(
                f,
                "of {volume} only what holds zeros is given back: {reason}"
            ),
            Notice::SnapshotsHold { volume } => write!(
                f,
                "what snapshots of {volume} share with it stays until they are deleted"
            ),
            Notice::PortsNotPassedOn { .. }
            | Notice::IdentityNotTold { .. }
            | Notice::TemplateCopied { .. }
            | Notice::RootLeftOut { .. }
            | Notice::StartsFromRevision { .. }
            | Notice::EphemeralGone { .. } => self.fmt_of_machines(f),
            Notice::SlowAccelerator { reason } => {
                write!(f, "the guest runs without hardware acceleration: {reason}")
            }
            Notice::StaysMounted { pool, reason } => {
                write!(f, "the filesystem of pool {pool} stays mounted: {reason}")
            }
            Notice::PoolInMemory { pool, directory } => write!(
                f,
                "pool {pool} is in memory: what {} holds is gone when this host restarts",
                directory.display()
            ),
            Notice::TrashGivenBack { volume, pool, used } => write!(
                f,
                "pool {pool} was short of room: deleted volume {volume}, which took {used}, \
                 cannot be restored any more"
            ),
            Notice::SshPortChanged { machine, port } => {
                write!(f, "the SSH port of {machine} was in use; it is now {port}")
            }
        }
    }
}

/// A reporter that keeps everything to itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn stage(&self, _text: &str) {}
    fn progress(&self, _done: u64, _total: u64) {}
    fn stage_over(&self) {}
    fn notice(&self, _notice: &Notice) {}
}
