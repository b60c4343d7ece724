//! A machine to try things on.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sistemo_host::lock::Lock;
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_model::{Access, Bytes, MacAddress, MachineId, StopHow, VcpuCount};
use sistemo_testkit::{Action, Requirement, TinyGuest};
use sistemo_vmm::{
    BootSource, Control, Disk, DiskLocation, MachineSpec, Network, Qemu, Started, Vmm, VmmError,
    VmmEvent,
};

/// Longer than anything here takes on a busy host.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);
pub(crate) const QEMU: Requirement = Requirement::Program("qemu-system-x86_64");

/// A runtime directory, and the machine in it.
pub(crate) struct Rig {
    pub(crate) home: tempfile::TempDir,
    pub(crate) runtime: PathBuf,
    lock: PathBuf,
    pub(crate) spec: MachineSpec,
    started: Option<Started>,
}

impl Rig {
    pub(crate) fn new(boot: BootSource) -> Rig {
        let home = tempfile::tempdir().unwrap();
        // Too long for the address of a Unix socket.
        let runtime = home.path().join("r".repeat(120));
        fs::create_dir(&runtime).unwrap();
        let id = MachineId::random();
        let spec = MachineSpec {
            id,
            name: "db1".parse().unwrap(),
            vcpus: VcpuCount::try_from(1).unwrap(),
            memory: Bytes::from_mib(128),
            boot,
            disks: Vec::new(),
            network: Network {
                mac: MacAddress::for_machine(id),
                forwards: Vec::new(),
            },
        };
        let lock = home.path().join("machine.lock");
        Rig {
            home,
            runtime,
            lock,
            spec,
            started: None,
        }
    }

    /// A tiny guest that does `actions`.
    pub(crate) fn doing(actions: &[Action]) -> Rig {
        let TinyGuest { kernel, initrd } = TinyGuest::find().unwrap();
        let command_line = TinyGuest::find().unwrap().command_line(actions);
        Rig::new(BootSource::Kernel {
            kernel,
            initrd: Some(initrd),
            command_line,
        })
    }

    pub(crate) fn disk(&mut self, path: &Path, size: Bytes, serial: &str, access: Access) {
        File::create(path).unwrap().set_len(size.get()).unwrap();
        self.attach(DiskLocation::RawFile(path.to_owned()), serial, access);
    }

    pub(crate) fn attach(&mut self, location: DiskLocation, serial: &str, access: Access) {
        self.spec.disks.push(Disk {
            location,
            serial: serial.parse().unwrap(),
            access,
        });
    }

    pub(crate) fn start_with(&mut self, qemu: &Qemu) -> Result<Started, VmmError> {
        let alive = Lock::acquire(&self.lock, "machine start db1", LIMIT).unwrap();
        let started = qemu.start(&self.spec, &self.runtime, &alive)?;
        self.started = Some(started.clone());
        Ok(started)
    }

    pub(crate) fn start(&mut self) -> ProcessIdentity {
        self.start_with(&Qemu::new()).unwrap().process
    }

    pub(crate) fn connect(&self) -> Box<dyn Control> {
        Qemu::new().connect(&self.runtime).unwrap()
    }

    pub(crate) fn follow(&self) -> Box<dyn Control> {
        Qemu::new().follow(&self.runtime).unwrap()
    }

    pub(crate) fn is_alive(&self) -> bool {
        Lock::is_held(&self.lock).unwrap()
    }

    /// Nobody was left behind. Tests run beside each other in one process: a program that
    /// another of them is just starting holds our lock until its exec(2), so this may wait.
    pub(crate) fn assert_nobody_is_left(&self) {
        let lock = Lock::acquire(&self.lock, "test", LIMIT);
        assert!(lock.is_ok(), "{lock:?}");
    }

    pub(crate) fn console(&self) -> String {
        let mut text = Vec::new();
        File::open(self.runtime.join("console.log"))
            .unwrap()
            .read_to_end(&mut text)
            .unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn wait_for(&self, text: &str) {
        let started = Instant::now();
        while !self.console().contains(text) {
            assert!(
                started.elapsed() < LIMIT,
                "`{text}` did not come in:\n{}",
                self.console()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_gone(&self) {
        let process = &self.started.as_ref().unwrap().process;
        assert!(process.wait_gone(Some(LIMIT)).unwrap());
    }

    pub(crate) fn ending(&self) -> Option<StopHow> {
        Qemu::new().ending(&self.runtime).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(started) = &self.started {
            let _ = started.process.end(Ending::Kill);
        }
        if thread::panicking() && self.runtime.join("console.log").exists() {
            eprintln!("the console of the failed test:\n{}", self.console());
            let said = fs::read_to_string(self.runtime.join("qemu.err")).unwrap_or_default();
            eprintln!("what its QEMU said:\n{said}");
        }
    }
}

pub(crate) fn next(control: &mut dyn Control) -> VmmEvent {
    control.next_event(LIMIT).unwrap().expect("an event")
}

/// The first sector of a disk, which prints `it boots`.
pub(crate) fn boot_sector() -> Vec<u8> {
    // mov si, text; l: lodsb; test al, al; jz end; mov ah, 0x0e; int 0x10; jmp l; end: hlt; jmp end
    let mut sector = vec![
        0xbe, 0x12, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf5, 0xf4,
        0xeb, 0xfd, 0x90,
    ];
    sector.extend_from_slice(b"it boots\r\n\0");
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}
