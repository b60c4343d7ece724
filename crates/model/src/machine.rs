//! What a machine is, and the states it moves through.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::volume::{UnknownWord, from_word};
use crate::{
    Access, Bytes, ImageName, Lifecycle, MachineId, MachineName, Timestamp, VolumeId, VolumeName,
};

/// A virtual machine: one root volume, an ordered list of data volumes, and what it runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its identifier.
    pub id: MachineId,
    /// Its name, unique among machines; also its host name.
    pub name: MachineName,
    /// The image its root volume was made from; `None` where it boots a volume that was there.
    pub image: Option<ImageName>,
    /// How many virtual processors it has.
    pub vcpus: VcpuCount,
    /// How much memory it has.
    pub memory: Bytes,
    /// What runs it.
    pub vmm: VmmKind,
    /// Its network card's address.
    pub mac: MacAddress,
    /// The host port on loopback that reaches its SSH server.
    pub ssh_port: u16,
    /// Guest ports reachable from the host.
    pub exposed: Vec<Exposure>,
    /// Whether it starts when the host does.
    pub autostart: bool,
    /// Whether deploy made its root volume, which then goes when the machine does.
    pub owns_root: bool,
    /// The volume that its root volume is cloned from at each start, and that is thrown away at
    /// each stop; `None` for a root volume that lasts.
    pub template: Option<VolumeId>,
    /// How long it lasts.
    pub lifetime: Lifetime,
    /// What it is doing.
    pub state: MachineState,
    /// Where it stands between being made and being removed.
    pub lifecycle: Lifecycle,
    /// When it was made.
    pub created: Timestamp,
    /// When its record last changed.
    pub modified: Timestamp,
}

/// How long a machine lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifetime {
    /// Until it is deleted.
    Persistent,
    /// Until it stops.
    Ephemeral,
}

/// A volume's place in a machine. Position 0 is the root, `/dev/vda`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The machine that holds the volume.
    pub machine: MachineId,
    /// The volume.
    pub volume: VolumeId,
    /// Its name at the time of the query.
    pub volume_name: VolumeName,
    /// Its place, counted from 0.
    pub position: u8,
    /// Whether the machine may write to it.
    pub access: Access,
}

impl Attachment {
    /// The most volumes one machine can hold, its root included: `/dev/vda` to `/dev/vdz`.
    pub const LIMIT: u8 = 26;

    /// The device name in the guest: `/dev/vda` for position 0.
    #[must_use]
    pub fn device(&self) -> String {
        format!("/dev/vd{}", char::from(b'a' + self.position))
    }
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MachineState {
    /// Its VMM is being started.
    Starting,
    /// Its processors run.
    Running,
    /// Its processors are held, its memory is kept.
    Paused(PauseCause),
    /// It was asked to end in this way and has not yet.
    Stopping(StopHow),
    /// It does not run; `None` where it never has.
    Stopped(Option<StopHow>),
}

/// Why a machine is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseCause {
    /// A user asked for it.
    Requested,
    /// A volume's host filesystem is full; resume after making room.
    DiskFull,
    /// A volume's file could not be read or written.
    DiskError,
}

/// How a machine came to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopHow {
    /// The guest powered itself off.
    Clean,
    /// It was ended from outside on request.
    Forced,
    /// Its VMM ended by itself, was killed, or went with the host.
    Crashed,
}

impl MachineState {
    /// Whether a machine may go from this state to `next`; the only rule there is about it.
    ///
    /// A VMM can end at any instant, so every state but `Stopped` leads to `Stopped`. One that
    /// was asked to end, and did not before whoever asked was gone, is `Running` again.
    #[must_use]
    pub fn can_become(self, next: MachineState) -> bool {
        use MachineState::{Paused, Running, Starting, Stopped, Stopping};
        match (self, next) {
            (Stopped(_), Starting)
            | (Starting, Running | Stopping(_) | Stopped(_))
            | (Running, Paused(_) | Stopping(_) | Stopped(_))
            | (Paused(_), Running | Paused(_) | Stopping(_) | Stopped(_))
            | (Stopping(_), Running | Stopping(_) | Stopped(Some(_))) => true,
            (Stopped(_), _)
            | (Starting, Starting | Paused(_))
            | (Running, Starting | Running)
            | (Paused(_), Starting)
            | (Stopping(_), Starting | Paused(_) | Stopped(None)) => false,
        }
    }

    /// Whether a VMM holds, or is about to hold, the machine's volumes.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, MachineState::Stopped(_))
    }

    /// The word users see: `starting`, `running`, `paused`, `stopping` or `stopped`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MachineState::Starting => "starting",
            MachineState::Running => "running",
            MachineState::Paused(_) => "paused",
            MachineState::Stopping(_) => "stopping",
            MachineState::Stopped(_) => "stopped",
        }
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl PauseCause {
    /// The word the catalogue stores and JSON shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PauseCause::Requested => "requested",
            PauseCause::DiskFull => "disk-full",
            PauseCause::DiskError => "disk-error",
        }
    }
}

impl StopHow {
    /// The word the catalogue stores and JSON shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StopHow::Clean => "clean",
            StopHow::Forced => "forced",
            StopHow::Crashed => "crashed",
        }
    }
}

from_word!(
    PauseCause,
    "cause of a pause",
    [
        PauseCause::Requested,
        PauseCause::DiskFull,
        PauseCause::DiskError
    ]
);
from_word!(
    StopHow,
    "way to stop",
    [StopHow::Clean, StopHow::Forced, StopHow::Crashed]
);

/// A kind of virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// QEMU.
    Qemu,
}

impl VmmKind {
    /// The word the catalogue stores and JSON shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            VmmKind::Qemu => "qemu",
        }
    }
}

from_word!(VmmKind, "VMM", [VmmKind::Qemu]);

/// What a user asked to run a machine with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// Whatever suits the host best.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
}

impl VmmChoice {
    /// The word users write.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            VmmChoice::Auto => "auto",
            VmmChoice::Qemu => "qemu",
        }
    }
}

from_word!(VmmChoice, "VMM", [VmmChoice::Auto, VmmChoice::Qemu]);

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor's own virtualization, through the kernel.
    Kvm,
    /// QEMU's translator; works everywhere, about ten times slower.
    Tcg,
}

impl Accelerator {
    /// The word QEMU and JSON use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

from_word!(
    Accelerator,
    "accelerator",
    [Accelerator::Kvm, Accelerator::Tcg]
);

/// A number of virtual processors, 1–255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VcpuCount(u8);

/// A text or number is not a number of virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of vCPUs between 1 and 255")]
pub struct VcpuError(String);

impl VcpuCount {
    /// The number for a machine that asks for none.
    pub const DEFAULT: VcpuCount = VcpuCount(2);

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }
}

impl TryFrom<u32> for VcpuCount {
    type Error = VcpuError;

    fn try_from(count: u32) -> Result<VcpuCount, VcpuError> {
        match u8::try_from(count) {
            Ok(count) if count > 0 => Ok(VcpuCount(count)),
            _ => Err(VcpuError(count.to_string())),
        }
    }
}

impl From<VcpuCount> for u32 {
    fn from(count: VcpuCount) -> u32 {
        count.get()
    }
}

impl FromStr for VcpuCount {
    type Err = VcpuError;

    fn from_str(text: &str) -> Result<VcpuCount, VcpuError> {
        match text.parse::<u8>() {
            Ok(count) if count > 0 => Ok(VcpuCount(count)),
            _ => Err(VcpuError(text.to_owned())),
        }
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// A guest port reachable from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// Where the host listens; port 0 asks for a free one.
    pub host: SocketAddr,
    /// The TCP port in the guest.
    pub guest: u16,
}

/// A text is not `[HOST:]GUEST`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not [[ADDRESS:]HOST-PORT:]GUEST-PORT with ports between 1 and 65535")]
pub struct ExposureError(String);

impl FromStr for Exposure {
    type Err = ExposureError;

    /// Parses `80` (the same port on the host), `8080:80` and `192.0.2.1:8080:80`. Listens on
    /// 127.0.0.1 unless an address is given; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Exposure, ExposureError> {
        let fail = || ExposureError(text.to_owned());
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 && text.chars().all(|c| c.is_ascii_digit()) => Ok(port),
            _ => Err(fail()),
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let Some((host, guest)) = text.rsplit_once(':') else {
            let guest = port(text)?;
            return Ok(Exposure {
                host: SocketAddr::new(loopback, guest),
                guest,
            });
        };
        let guest = port(guest)?;
        let host = match host.rsplit_once(':') {
            None => SocketAddr::new(loopback, port(host)?),
            Some((address, host_port)) => {
                let bare = address
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_suffix(']'));
                let address = match bare {
                    Some(v6) => IpAddr::V6(v6.parse().map_err(|_| fail())?),
                    None => IpAddr::V4(address.parse().map_err(|_| fail())?),
                };
                SocketAddr::new(address, port(host_port)?)
            }
        };
        Ok(Exposure { host, guest })
    }
}

/// The address of a machine's network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address of QEMU's own range, `52:54:00`, with the last three bytes from the
    /// machine's identifier.
    #[must_use]
    pub fn for_machine(id: MachineId) -> MacAddress {
        let digits = id.simple();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or(0);
        MacAddress([0x52, 0x54, 0x00, byte(0), byte(2), byte(4)])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

impl FromStr for MacAddress {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<MacAddress, UnknownWord> {
        let unknown = || UnknownWord::new("MAC address", text);
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(unknown)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| unknown())?;
        }
        if parts.next().is_some() {
            Err(unknown())
        } else {
            Ok(MacAddress(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposures_listen_on_loopback_unless_told_otherwise() {
        let cases = [
            ("80", "127.0.0.1:80", 80),
            ("8080:80", "127.0.0.1:8080", 80),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80),
            ("[::1]:8080:80", "[::1]:8080", 80),
        ];
        for (text, host, guest) in cases {
            let expected = Exposure {
                host: host.parse().unwrap(),
                guest,
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_exposures_are_refused_by_name() {
        for text in [
            "",
            "0",
            "x",
            "80:",
            ":80",
            "70000",
            "1:2:3",
            "::1:80:80",
            "+80",
            "a:1:2",
        ] {
            let error = text.parse::<Exposure>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn vcpus_are_between_1_and_255() {
        assert!("1".parse::<VcpuCount>().is_ok());
        assert!("255".parse::<VcpuCount>().is_ok());
        for text in ["0", "256", "10000", "-1", "two", ""] {
            assert!(text.parse::<VcpuCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_stopped_machine_can_only_start() {
        use MachineState::{Paused, Running, Starting, Stopped, Stopping};
        let all = [
            Starting,
            Running,
            Paused(PauseCause::Requested),
            Stopping(StopHow::Clean),
            Stopped(Some(StopHow::Clean)),
        ];
        for next in all {
            assert_eq!(Stopped(None).can_become(next), next == Starting, "{next}");
        }
        for from in &all[..4] {
            assert!(from.can_become(Stopped(Some(StopHow::Crashed))), "{from}");
        }
    }

    #[test]
    fn a_mac_address_comes_from_the_machine_and_reads_back() {
        let id: MachineId = "a1b2c3d4-5678-4abc-9ef0-123456789abc".parse().unwrap();
        let mac = MacAddress::for_machine(id);
        assert_eq!(mac.to_string(), "52:54:00:a1:b2:c3");
        assert_eq!("52:54:00:a1:b2:c3".parse(), Ok(mac));
        assert!("52:54:00:a1:b2".parse::<MacAddress>().is_err());
    }
}
