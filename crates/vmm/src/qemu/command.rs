//! QEMU's command line for a machine.
//!
//! Whatever holds a path or a name from outside is JSON, so that no comma in it can become an
//! option. Relative names are those of sockets and logs: QEMU runs in the runtime directory,
//! for the path of a Unix socket ends at 108 bytes.
//!
//! Devices have fixed places on the PCI bus, so that attaching a disk never renames the
//! network card in the guest.

use std::ffi::OsString;

use serde_json::{Value, json};
use sistemo_model::{Accelerator, Attachment, Exposure};

use super::ending;
use super::nodes::{self, Aio, Caching, Opening, absolute};
use crate::VmmError;
use crate::contract::{BootSource, Credential, Disk, MachineSpec};

/// The socket for commands.
pub(super) const CONTROL: &str = "control.sock";
/// The socket for the process that follows the machine.
pub(super) const EVENTS: &str = "events.sock";
/// The socket of the first serial port.
pub(super) const CONSOLE: &str = "console.sock";
/// What the guest printed on the first serial port.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// The socket of the guest agent's port.
pub(super) const AGENT: &str = "agent.sock";
/// QEMU's own name for the guest agent's port.
pub(super) const AGENT_CHANNEL: &str = "agent";

const NETWORK_PLACE: u8 = 1;
const RANDOM_PLACE: u8 = 2;
const SERIAL_BUS_PLACE: u8 = 3;
/// The first disk's place. With 26 disks the last is 29; 31 belongs to the chipset.
const FIRST_DISK_PLACE: u8 = 4;
/// The places that there are for disks.
pub(super) const MOST_DISKS: u8 = Attachment::LIMIT;
const _: () = assert!(FIRST_DISK_PLACE + MOST_DISKS <= 31);

/// QEMU's word for a forwarded port, which stands in its error message too.
pub(super) fn forward_rule(forward: &Exposure) -> String {
    format!("tcp:{}-:{}", forward.host, forward.guest)
}

/// The arguments that start a machine with its processors held (`-S`).
pub(super) fn arguments(
    spec: &MachineSpec,
    accelerator: Accelerator,
    aio: Aio,
    caching: &[Caching],
) -> Result<Vec<OsString>, VmmError> {
    let mut arguments = Arguments::default();
    arguments.machine(spec, accelerator);
    arguments.boot(&spec.boot);
    for (position, (disk, caching)) in (0..).zip(spec.disks.iter().zip(caching)) {
        let boots = position == 0 && matches!(spec.boot, BootSource::Firmware { .. });
        arguments.disk(position, disk, aio, *caching, boots)?;
    }
    arguments.network(spec);
    arguments.channels();
    Ok(arguments.list)
}

#[derive(Default)]
struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.list.push(flag.into());
    }

    fn option(&mut self, option: &str, value: impl Into<OsString>) {
        self.list.push(option.into());
        self.list.push(value.into());
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.option(option, value.to_string());
    }

    fn machine(&mut self, spec: &MachineSpec, accelerator: Accelerator) {
        self.flag("-nodefaults");
        self.flag("-no-user-config");
        // The parent process has a session of its own already: `-daemonize` would need to fork.
        self.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        self.flag("-S");
        self.option("-name", format!("guest={}", spec.name));
        self.option("-uuid", spec.id.to_string());
        self.option("-display", "none");
        // Firmware has no screen to write on, so it writes on the serial port.
        let machine = match spec.boot {
            BootSource::Kernel { .. } => "q35",
            BootSource::Firmware { .. } => "q35,graphics=off",
        };
        self.option("-machine", machine);
        let (accelerator, processor) = match accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=multi", "max"),
        };
        self.option("-accel", accelerator);
        self.option("-cpu", processor);
        self.option("-smp", spec.vcpus.to_string());
        self.option("-m", format!("size={}B", spec.memory.get()));
        // Nobody would wake up a guest that went to sleep.
        self.option("-global", "ICH9-LPC.disable_s3=1");
        self.option("-global", "ICH9-LPC.disable_s4=1");
        // How a guest that panics says so.
        self.json("-device", &json!({ "driver": "pvpanic" }));
        self.option("-D", ending::TRACE);
        self.option("-trace", "enable=qemu_system_shutdown_request");
    }

    fn boot(&mut self, boot: &BootSource) {
        match boot {
            BootSource::Kernel {
                kernel,
                initrd,
                command_line,
            } => {
                self.option("-kernel", absolute(kernel));
                if let Some(initrd) = initrd {
                    self.option("-initrd", absolute(initrd));
                }
                self.option("-append", command_line);
            }
            BootSource::Firmware { credentials } => {
                self.option("-boot", "strict=on");
                for Credential { name, value } in credentials {
                    let text = format!("io.systemd.credential:{name}={value}");
                    // QEMU's key=value options take a comma for their own unless it is doubled.
                    self.option(
                        "-smbios",
                        format!("type=11,value={}", text.replace(',', ",,")),
                    );
                }
            }
        }
    }

    /// Adds a disk. `werror=enospc`: at a full filesystem the machine is paused, with the write
    /// to be tried again; any other error the guest is told of, as by a real disk.
    fn disk(
        &mut self,
        position: u8,
        disk: &Disk,
        aio: Aio,
        caching: Caching,
        boots: bool,
    ) -> Result<(), VmmError> {
        let name = nodes::node_name(position);
        let opening = Opening {
            aio,
            caching,
            access: disk.access,
        };
        let node = opening.node(&name, &disk.location)?;
        let mut device = json!({
            "driver": "virtio-blk-pci",
            "id": nodes::device_name(position),
            "drive": name,
            "serial": disk.serial.as_str(),
            "werror": "enospc",
            "rerror": "report",
            "addr": place(FIRST_DISK_PLACE + position),
        });
        if boots {
            device["bootindex"] = 0.into();
        }
        self.json("-blockdev", &node);
        self.json("-device", &device);
        Ok(())
    }

    fn network(&mut self, spec: &MachineSpec) {
        // JSON would do from QEMU 7.2 on; addresses and ports hold no comma.
        let mut user = "user,id=net0".to_owned();
        for forward in &spec.network.forwards {
            user.push_str(",hostfwd=");
            user.push_str(&forward_rule(forward));
        }
        self.option("-netdev", user);
        let device = json!({
            "driver": "virtio-net-pci",
            "netdev": "net0",
            "mac": spec.network.mac.to_string(),
            // No boot from the network, and no ROM file to be installed.
            "romfile": "",
            "addr": place(NETWORK_PLACE),
        });
        self.json("-device", &device);
        self.json(
            "-object",
            &json!({ "qom-type": "rng-builtin", "id": "rng0" }),
        );
        let device = json!({
            "driver": "virtio-rng-pci",
            "rng": "rng0",
            "addr": place(RANDOM_PLACE),
        });
        self.json("-device", &device);
    }

    fn channels(&mut self) {
        let socket =
            |id: &str, path: &str| format!("socket,id={id},path={path},server=on,wait=off");
        let logged = format!(
            "{},logfile={CONSOLE_LOG},logappend=on",
            socket("console", CONSOLE)
        );
        self.option("-chardev", logged);
        self.option("-serial", "chardev:console");
        self.option("-chardev", socket(AGENT_CHANNEL, AGENT));
        let bus = json!({
            "driver": "virtio-serial-pci",
            "id": "serial0",
            "addr": place(SERIAL_BUS_PLACE),
        });
        self.json("-device", &bus);
        let port = json!({
            "driver": "virtserialport",
            "bus": "serial0.0",
            "chardev": AGENT_CHANNEL,
            "name": "org.qemu.guest_agent.0",
        });
        self.json("-device", &port);
        for (id, path) in [("control", CONTROL), ("events", EVENTS)] {
            self.option("-chardev", socket(id, path));
            self.option("-mon", format!("chardev={id},mode=control"));
        }
    }
}

fn place(number: u8) -> String {
    format!("{number:#x}")
}

#[cfg(test)]
mod tests {
    use sistemo_model::{Access, Bytes, MacAddress, MachineId, VcpuCount};

    use super::*;
    use crate::contract::{DiskLocation, Network};

    fn spec() -> MachineSpec {
        let id: MachineId = "a1b2c3d4-5678-4abc-9ef0-123456789abc".parse().unwrap();
        let disk = |path: &str, serial: &str, access| Disk {
            location: DiskLocation::RawFile(path.into()),
            serial: serial.parse().unwrap(),
            access,
        };
        MachineSpec {
            id,
            name: "db1".parse().unwrap(),
            vcpus: VcpuCount::try_from(2).unwrap(),
            memory: Bytes::from_mib(512),
            boot: BootSource::Kernel {
                kernel: "/data/kernels/k".into(),
                initrd: Some("/data/kernels/i".into()),
                command_line: "root=/dev/vda \"a=b, c\"".into(),
            },
            disks: vec![
                disk("/data/volumes/root.ext4", "db1-root", Access::ReadWrite),
                disk("/data/a, \"b\".ext4", "pgdata", Access::ReadOnly),
            ],
            network: Network {
                mac: MacAddress::for_machine(id),
                forwards: vec![
                    "2222:22".parse().unwrap(),
                    "192.0.2.1:8080:80".parse().unwrap(),
                ],
            },
        }
    }

    /// An option and its value a line.
    fn shown(arguments: &[OsString]) -> String {
        let mut text = String::new();
        for argument in arguments {
            let argument = argument.to_str().unwrap();
            let separator = match argument {
                "" => "",
                option if option.starts_with('-') => "\n",
                _ => " ",
            };
            text.push_str(separator);
            text.push_str(argument);
        }
        text.trim_start().to_owned()
    }

    #[test]
    fn a_machine_with_a_kernel_is_this_command_line() {
        let caching = [Caching::Direct, Caching::Cached];
        let arguments = arguments(&spec(), Accelerator::Tcg, Aio::IoUring, &caching).unwrap();
        insta::assert_snapshot!("kernel", shown(&arguments));
    }

    #[test]
    fn a_machine_with_firmware_is_this_command_line() {
        let mut spec = spec();
        spec.boot = BootSource::Firmware {
            credentials: vec![Credential {
                name: "ssh.authorized_keys.root",
                value: "ssh-ed25519 AAAA one, two".to_owned(),
            }],
        };
        spec.network.forwards.clear();
        let caching = [Caching::Direct; 2];
        let arguments = arguments(&spec, Accelerator::Kvm, Aio::Threads, &caching).unwrap();
        insta::assert_snapshot!("firmware", shown(&arguments));
    }

    #[test]
    fn a_machine_with_every_kind_of_disk_is_this_command_line() {
        let mut spec = spec();
        let disk = |location, serial: &str, access| Disk {
            location,
            serial: serial.parse().unwrap(),
            access,
        };
        let qcow2 = |path: &str| DiskLocation::Qcow2File(path.into());
        let device = DiskLocation::BlockDevice("/dev/data/pgdata".into());
        spec.disks.extend([
            disk(qcow2("/data/v.qcow2"), "redis", Access::ReadWrite),
            disk(qcow2("/data/w.qcow2"), "old", Access::ReadOnly),
            disk(device, "device", Access::ReadWrite),
        ]);
        spec.disks.remove(1);
        let caching = [Caching::Direct; 4];
        let arguments = arguments(&spec, Accelerator::Tcg, Aio::IoUring, &caching).unwrap();
        let disks = shown(&arguments)
            .lines()
            .filter(|line| line.starts_with("-blockdev") || line.contains("virtio-blk"))
            .collect::<Vec<_>>()
            .join("\n");
        insta::assert_snapshot!("disks", disks);
    }

    #[test]
    fn a_path_that_json_cannot_hold_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let mut spec = spec();
        let path = OsString::from_vec(b"/data/\xff.ext4".to_vec());
        spec.disks[0].location = DiskLocation::RawFile(path.into());
        let caching = [Caching::Direct; 2];
        let error = arguments(&spec, Accelerator::Tcg, Aio::Threads, &caching).unwrap_err();
        assert!(matches!(error, VmmError::Path { .. }), "{error}");
    }
}
