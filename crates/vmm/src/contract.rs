//! What a machine is made of, and what every VMM can do with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sistemo_host::lock::Lock;
use sistemo_host::process::ProcessIdentity;
use sistemo_model::{
    Accelerator, Access, Bytes, Exposure, MacAddress, MachineId, MachineName, PauseCause, StopHow,
    VcpuCount, VmmKind, VolumeId, VolumeName,
};

use crate::VmmError;

/// Everything a VMM needs to know to start a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Its identifier, which the guest sees as the system's UUID.
    pub id: MachineId,
    /// Its name, for process lists and messages.
    pub name: MachineName,
    /// How many virtual processors it has.
    pub vcpus: VcpuCount,
    /// How much memory it has.
    pub memory: Bytes,
    /// What it boots.
    pub boot: BootSource,
    /// Its disks in order: the first is `/dev/vda`.
    pub disks: Vec<Disk>,
    /// Its network card.
    pub network: Network,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootSource {
    /// A Linux kernel from a file of the host.
    Kernel {
        /// The kernel, as an absolute path.
        kernel: PathBuf,
        /// The initial RAM disk, as an absolute path.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        command_line: String,
    },
    /// Whatever the first disk's boot sector holds.
    Firmware {
        /// What the guest's systemd is handed, in place of a kernel command line.
        credentials: Vec<Credential>,
    },
}

/// A value that the guest's systemd finds in its firmware's tables (systemd 252 and later,
/// systemd.system-credentials(7), `io.systemd.credential:` in SMBIOS strings of type 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name, such as `ssh.authorized_keys.root`.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where its content is.
    pub location: DiskLocation,
    /// What the guest knows it by: `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: DiskSerial,
    /// Whether the guest may write to it.
    pub access: Access,
}

/// Where a disk's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskLocation {
    /// A regular file that holds the disk byte for byte, as an absolute path. Its format is
    /// never guessed from its content, which belongs to the guest.
    RawFile(PathBuf),
    /// A block device of the host that is the disk, as an absolute path.
    BlockDevice(PathBuf),
    /// A qcow2 file, as an absolute path. Its backing files are those that it and they name.
    Qcow2File(PathBuf),
}

impl DiskLocation {
    /// The file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            DiskLocation::RawFile(path)
            | DiskLocation::BlockDevice(path)
            | DiskLocation::Qcow2File(path) => path,
        }
    }
}

/// A disk's serial number: 1 to 20 of `a-z A-Z 0-9 . _ -`.
///
/// 20 bytes are what virtio-blk has room for (`VIRTIO_BLK_ID_BYTES`, virtio 1.2 section 5.2.6);
/// the characters are those that udev leaves as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskSerial(String);

impl DiskSerial {
    /// The longest serial number, in bytes.
    pub const LIMIT: usize = 20;

    /// The serial number of a volume: its name, or the first 20 hex digits of its ID where the
    /// name is longer than that.
    #[must_use]
    pub fn for_volume(name: &VolumeName, id: VolumeId) -> DiskSerial {
        if name.as_str().len() <= DiskSerial::LIMIT {
            DiskSerial(name.as_str().to_owned())
        } else {
            DiskSerial(id.simple()[..DiskSerial::LIMIT].to_owned())
        }
    }

    /// The serial number as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskSerial {
    type Err = VmmError;

    fn from_str(text: &str) -> Result<DiskSerial, VmmError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=DiskSerial::LIMIT).contains(&text.len()) && text.chars().all(allowed) {
            Ok(DiskSerial(text.to_owned()))
        } else {
            Err(VmmError::Serial {
                serial: text.to_owned(),
            })
        }
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A machine's network card, behind address translation in the VMM itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The card's address.
    pub mac: MacAddress,
    /// Host ports that reach guest ports; the host's port is a definite one, not 0.
    pub forwards: Vec<Exposure>,
}

/// A virtual machine monitor.
///
/// Every machine has a runtime directory, existing and with mode 0700, that the VMM fills with
/// sockets and logs; it is all that one process needs to reach a machine that another started.
/// A runtime directory holds `console.sock`, the guest's first serial port, and `console.log`,
/// what it has printed there since the machine was made. A client of the console must read: a
/// guest waits for one that does not.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// Which VMM this is.
    fn kind(&self) -> VmmKind;

    /// Looks whether it is there and how it would run guests, without starting one.
    ///
    /// # Errors
    /// [`VmmError::NotInstalled`] and [`VmmError::TooOld`].
    fn probe(&self) -> Result<Probe, VmmError>;

    /// Starts a machine and returns once its processors run; what the guest makes of that is
    /// not waited for.
    ///
    /// The VMM inherits `alive` and nothing else: from then on that lock is held exactly while
    /// the VMM lives. It is a child of the calling process, in its session, and stays when that
    /// process ends. The logs of the run before are replaced.
    ///
    /// A crash in the middle leaves either no VMM, or one that holds the lock and whose
    /// processors run or never will; both can be ended with [`Control::quit`].
    ///
    /// # Errors
    /// [`VmmError::Start`] with the VMM's own last words, [`VmmError::Forward`] where a port is
    /// taken, [`VmmError::File`] where a disk cannot be opened. Then nothing is left running.
    fn start(&self, spec: &MachineSpec, runtime: &Path, alive: &Lock) -> Result<Started, VmmError>;

    /// Connects to a running machine to give it commands. One client has its turn at a time;
    /// it should be short.
    ///
    /// # Errors
    /// [`VmmError::NotRunning`] where no VMM runs there, [`VmmError::Busy`] naming the holder
    /// where another client did not let go in time.
    fn connect(&self, runtime: &Path) -> Result<Box<dyn Control>, VmmError>;

    /// Connects to a running machine to follow it for as long as it lives, which leaves
    /// [`Vmm::connect`] free for others. There is one follower.
    ///
    /// What happened before is not told; [`Control::status`] asks for it.
    ///
    /// # Errors
    /// As [`Vmm::connect`].
    fn follow(&self, runtime: &Path) -> Result<Box<dyn Control>, VmmError>;

    /// Connects to the agent in a running machine's guest, such as qemu-ga(8); `None` where none
    /// listens, which takes no time to find out. One client has its turn at a time.
    ///
    /// # Errors
    /// As [`Vmm::connect`], and [`VmmError::AgentSilent`] where one listens and does not answer.
    fn guest_agent(&self, runtime: &Path) -> Result<Option<Box<dyn GuestAgent>>, VmmError>;

    /// How the last run ended, as far as the VMM left word of it; `None` where it left none,
    /// being killed, gone with the host, still running, or never started.
    ///
    /// # Errors
    /// Where the runtime directory or its logs cannot be read.
    fn ending(&self, runtime: &Path) -> Result<Option<StopHow>, VmmError>;
}

/// What a VMM on this host is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its version, as it says.
    pub version: String,
    /// What would execute a guest's instructions.
    pub accelerator: Accelerator,
    /// Why that, for users.
    pub reason: String,
}

/// A machine that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The VMM's process.
    pub process: ProcessIdentity,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
}

/// A connection to a running machine.
pub trait Control: fmt::Debug + Send {
    /// What the machine is doing.
    ///
    /// # Errors
    /// Those of any command: [`VmmError::Closed`] where the VMM ended meanwhile,
    /// [`VmmError::Silent`], [`VmmError::Talk`], [`VmmError::Refused`].
    fn status(&mut self) -> Result<RunStatus, VmmError>;

    /// Holds the processors, once what they asked of the disks is done. A machine that is held
    /// already stays so.
    ///
    /// # Errors
    /// As [`Control::status`].
    fn pause(&mut self) -> Result<(), VmmError>;

    /// Lets the processors run on. A machine held at a full disk tries its write again; where
    /// there is still no room it is held again at once.
    ///
    /// # Errors
    /// As [`Control::status`].
    fn resume(&mut self) -> Result<(), VmmError>;

    /// Presses the power button (ACPI): the guest is asked to shut down, and may not hear it.
    /// A paused machine hears it when it is resumed.
    ///
    /// # Errors
    /// As [`Control::status`].
    fn power_button(&mut self) -> Result<(), VmmError>;

    /// Ends the VMM as if power was cut, except that what the guest was told to be written is
    /// on disk. Returns when the VMM has agreed, which is before its process is gone.
    ///
    /// # Errors
    /// As [`Control::status`], but a VMM that is gone already is no error.
    fn quit(&mut self) -> Result<(), VmmError>;

    /// Waits up to `limit` for something to happen; `None` where nothing did.
    ///
    /// # Errors
    /// [`VmmError::Closed`] when the VMM has ended; after that comes nothing more.
    fn next_event(&mut self, limit: Duration) -> Result<Option<VmmEvent>, VmmError>;

    /// Makes the running machine's disk in place `position` larger, and its file too where that
    /// is not so already. The guest sees the new size at once.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`], [`VmmError::Shrink`], and those of [`Control::status`].
    fn grow_disk(&mut self, position: u8, size: Bytes) -> Result<(), VmmError>;

    /// The file that the disk in place `position` is written to now, by the path that the VMM was
    /// given.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`] and those of [`Control::status`].
    fn disk_file(&mut self, position: u8) -> Result<PathBuf, VmmError>;

    /// Lets the disk in place `position`, a qcow2 file, be written to `overlay` from now on: an
    /// empty qcow2 file of the same size whose backing file is the one that was written until
    /// now. What was written before is in the old file, flushed, and nothing writes to that any
    /// more. The machine may run or be paused.
    ///
    /// A crash leaves the VMM writing to either file.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`], [`VmmError::NotQcow2`], [`VmmError::Flattening`],
    /// [`VmmError::Overlay`] for one of another size or over another file, and those of
    /// [`Control::status`]. The VMM then goes on with the old file and has let go of the other.
    fn switch_disk(&mut self, position: u8, overlay: &Path) -> Result<(), VmmError>;

    /// Copies what lies beneath the top file of the disk in place `position` into it, until it
    /// has no backing file, and lets go of those beneath. The guest runs on meanwhile; this
    /// client keeps its turn all the while. `progress` is told the bytes done and the bytes
    /// there are to do.
    ///
    /// Killed in the middle, the VMM goes on; flattening again joins in. The top file names its
    /// backing file until all of it is in the top file and flushed.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`], [`VmmError::NotQcow2`], and those of [`Control::status`]. The disk
    /// then still has its backing files, and the guest does not notice.
    fn flatten_disk(
        &mut self,
        position: u8,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), VmmError>;

    /// Brings to the host's disk what the VMM has written to the file of the disk in place
    /// `position`. The guest runs on, and what it writes meanwhile may be left out.
    ///
    /// Nothing depends on it: it takes out of a pause what that would otherwise wait for.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`], [`VmmError::File`], and those of [`Control::status`].
    fn flush_disk(&mut self, position: u8) -> Result<(), VmmError>;

    /// Opens the targets of copies that [`Control::start_copies`] is to start. What an earlier
    /// client left of copies of the same disks is ended.
    ///
    /// A crash leaves targets open; [`Control::end_copies`] lets go of them.
    ///
    /// # Errors
    /// [`VmmError::NoDisk`], [`VmmError::Flattening`], and those of [`Control::status`], such as
    /// for a target that cannot be opened.
    fn prepare_copies(&mut self, copies: &[DiskCopy]) -> Result<(), VmmError>;

    /// Starts to copy prepared disks, all as they are at one and the same instant, whatever the
    /// guest writes from then on. The machine may run or be paused; the copies go on without this
    /// client, while others give commands, and end with the VMM.
    ///
    /// A guest's write waits until what it overwrites is copied. Where the target has no room for
    /// that, the machine is paused as at a full disk; once the copies are ended it can be let go.
    ///
    /// # Errors
    /// Those of [`Control::status`]; no copy is started then.
    fn start_copies(&mut self, positions: &[u8]) -> Result<(), VmmError>;

    /// How far the copies of these disks are.
    ///
    /// # Errors
    /// [`VmmError::Copy`] where one failed, and those of [`Control::status`].
    fn copies(&mut self, positions: &[u8]) -> Result<CopyProgress, VmmError>;

    /// Ends the copies of these disks, complete or not, and lets go of their targets. Where there
    /// are none that is no error.
    ///
    /// # Errors
    /// Those of [`Control::status`].
    fn end_copies(&mut self, positions: &[u8]) -> Result<(), VmmError>;
}

/// A program in the guest that does what only the guest itself can.
///
/// The guest must run for it to answer. What it was asked and did not answer in time it may still
/// do later: whoever gave up on a freeze must thaw, until that is answered.
pub trait GuestAgent: fmt::Debug + Send {
    /// Freezes the guest's filesystems: all that was written is on its disks, they are clean, and
    /// whoever writes waits until they are thawed. Returns how many are frozen.
    ///
    /// # Errors
    /// [`VmmError::AgentSilent`], [`VmmError::AgentRefused`], [`VmmError::AgentTalk`]. They may be
    /// frozen all the same.
    fn freeze(&mut self) -> Result<u64, VmmError>;

    /// Lets the guest write again; returns how many filesystems were thawed. Where none is frozen
    /// that is 0 and no error.
    ///
    /// # Errors
    /// As [`GuestAgent::freeze`].
    fn thaw(&mut self) -> Result<u64, VmmError>;
}

/// A disk of a running machine that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// The disk's place.
    pub position: u8,
    /// The file that gets the copy, byte for byte: an existing one that reads as zeros. Of what
    /// is zero on the disk nothing is written to it.
    pub target: PathBuf,
}

/// How far copies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyProgress {
    /// The bytes looked at.
    pub done: u64,
    /// The bytes there are to look at, holes included.
    pub total: u64,
    /// Whether the VMM has all that it is to copy in its targets, not flushed.
    pub complete: bool,
}

/// What a machine whose VMM runs is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunStatus {
    /// Its processors have not run yet.
    Starting,
    /// Its processors run.
    Running,
    /// Its processors are held and can be let go.
    Paused(PauseCause),
    /// Its processors are held for good by an error of the VMM or the accelerator; all that
    /// helps is [`Control::quit`].
    Stuck,
    /// The guest is off and the VMM about to end.
    Ending,
}

/// Something that happened to a running machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmmEvent {
    /// The processors are held.
    Paused(PauseCause),
    /// The processors run again.
    Resumed,
    /// The processors are held for good, as [`RunStatus::Stuck`] says.
    Stuck,
    /// The guest started anew.
    Reset,
    /// The machine is off and its VMM about to end: `Clean` where the guest powered itself
    /// off, `Forced` where it was told to from outside, `Crashed` where the guest panicked.
    Ending(StopHow),
    /// A disk could not be read or written. At a full disk [`VmmEvent::Paused`] follows, any
    /// other error the guest is told of.
    DiskError {
        /// The disk's place, counted from 0, where the VMM says.
        position: Option<u8>,
        /// What failed.
        operation: DiskOperation,
        /// Whether it was for want of room.
        full: bool,
        /// What the system answered.
        message: String,
    },
}

/// What was asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskOperation {
    /// To read.
    Read,
    /// To write, flush or discard.
    Write,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_the_name_where_it_fits() {
        let id: VolumeId = "a1b2c3d4-5678-4abc-9ef0-123456789abc".parse().unwrap();
        for (name, serial) in [
            ("pgdata", "pgdata"),
            ("twenty-characters-00", "twenty-characters-00"),
            ("twenty-one-characters", "a1b2c3d456784abc9ef0"),
        ] {
            let serial_of_name = DiskSerial::for_volume(&name.parse().unwrap(), id);
            assert_eq!(serial_of_name.as_str(), serial);
            assert_eq!(serial.parse::<DiskSerial>().unwrap(), serial_of_name);
        }
    }

    #[test]
    fn what_is_no_serial_is_refused_by_name() {
        for text in ["", "twenty-one-characters", "a,b", "a b", "a/b", "ä"] {
            let error = text.parse::<DiskSerial>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
