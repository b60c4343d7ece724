//! Snapshots while a machine writes. The machine is `qemu-io`, which opens the file anew for each
//! write, in the place of a VMM that holds it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sistemo_host::Changed;
use sistemo_host::lock::take_record_lock;
use sistemo_host::program::{Program, Running};
use sistemo_model::{Bytes, Timestamp};
use sistemo_pools::{LiveDisk, LiveDiskError, Pool, PoolError};
use sistemo_testkit::{Requirement, met};

use crate::scene::{MIB, Scene, name, run, scene, text};

#[derive(Debug, PartialEq, Eq)]
enum Mood {
    Willing,
    Refuses,
    /// Refuses, but goes on holding the new file.
    RefusesAndHolds,
    /// As if this process were killed before the machine was told.
    Dies,
}

/// A VMM that writes where it was told to last.
struct Vmm {
    file: PathBuf,
    mood: Mood,
    holder: Option<Running>,
}

impl Vmm {
    fn write(&self, byte: u8, at: &str) {
        let command = format!("write -P {byte} {at}");
        let said = run(
            "qemu-io",
            &["-f", "qcow2", "-c", &command, text(&self.file)],
        );
        assert!(said.contains("wrote"), "{said}");
    }

    fn hold(&mut self, file: &Path) {
        let holder = Program::find("qemu-io")
            .unwrap()
            .args(["-f", "qcow2", "-c", "sleep 60000", text(file)])
            .spawn()
            .unwrap();
        self.holder = Some(holder);
        let open = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)
            .unwrap();
        while take_record_lock(&open).unwrap() {
            drop(std::fs::File::open(file).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl LiveDisk for Vmm {
    fn file(&mut self) -> Result<PathBuf, LiveDiskError> {
        Ok(self.file.clone())
    }

    fn switch_to(&mut self, overlay: &Path) -> Result<(), LiveDiskError> {
        assert!(overlay.is_absolute() && overlay.extension().is_some_and(|e| e == "qcow2"));
        let info = run("qemu-img", &["info", text(overlay)]);
        assert!(info.contains("backing file format: qcow2"), "{info}");
        // As the VMM does: it would start the next time with what the overlay names.
        let over = format!(
            "backing file: {}",
            self.file.file_name().unwrap().to_str().unwrap()
        );
        assert!(info.contains(&over), "{info}");
        let map = run("qemu-img", &["map", "--output=json", text(overlay)]);
        assert!(
            !map.contains("\"depth\": 0, \"present\": true, \"zero\": false"),
            "{map}"
        );
        match self.mood {
            Mood::Willing => {
                overlay.clone_into(&mut self.file);
                Ok(())
            }
            Mood::Refuses => Err("no".into()),
            Mood::RefusesAndHolds => {
                self.hold(overlay);
                Err("no answer".into())
            }
            Mood::Dies => panic!("killed here"),
        }
    }

    fn flatten(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), LiveDiskError> {
        if self.mood != Mood::Willing {
            return Err("no".into());
        }
        run(
            "qemu-img",
            &["rebase", "-f", "qcow2", "-b", "", text(&self.file)],
        );
        progress(1, 1);
        Ok(())
    }
}

fn ready() -> bool {
    met(&["qemu-img", "qemu-io"].map(Requirement::Program))
}

impl Scene {
    fn boot(&self, id: sistemo_model::VolumeId) -> Vmm {
        Vmm {
            file: self.top(id),
            mood: Mood::Willing,
            holder: None,
        }
    }

    fn live_snapshot(
        &self,
        id: sistemo_model::VolumeId,
        snapshot: &str,
        vmm: &mut Vmm,
    ) -> Result<(), PoolError> {
        let snapshots = self.pool.snapshots().unwrap();
        snapshots
            .take_snapshot(
                id,
                &name(snapshot),
                Timestamp::now(),
                Some(vmm),
                &mut |_, _| {},
            )
            .map(|_| ())
    }
}

#[test]
fn a_machine_goes_on_in_a_new_file() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(4 * MIB);
    let mut vmm = scene.boot(made.id);
    vmm.write(1, "0 64k");
    scene.live_snapshot(made.id, "one", &mut vmm).unwrap();
    vmm.write(2, "0 4k");
    scene.live_snapshot(made.id, "two", &mut vmm).unwrap();
    vmm.write(3, "0 512");
    assert_eq!(vmm.file, scene.top(made.id));
    assert_eq!(scene.read_snapshot(made.id, "one", 0, 4096), [1; 4096]);
    assert_eq!(scene.read_snapshot(made.id, "two", 0, 4096), [2; 4096]);
    assert_eq!(scene.read(made.id, 0, 512), [3; 512]);
    assert_eq!(scene.read(made.id, 4096, 512), [1; 512]);
    // Deleting one takes nothing away that the machine needs.
    assert_eq!(scene.delete(made.id, "one"), Changed::Yes);
    vmm.write(4, "8k 4k");
    assert_eq!(scene.read(made.id, 4096, 512), [1; 512]);
    scene.is_sound(made.id);
}

#[test]
fn two_snapshots_without_a_write_between_are_two_files_to_a_machine() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let mut vmm = scene.boot(made.id);
    scene.live_snapshot(made.id, "one", &mut vmm).unwrap();
    let first = vmm.file.clone();
    scene.live_snapshot(made.id, "two", &mut vmm).unwrap();
    assert_ne!(vmm.file, first);
    assert_eq!(scene.names_of_snapshots(made.id), ["one", "two"]);
}

#[test]
fn a_refusal_leaves_no_snapshot_and_no_file() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let mut vmm = scene.boot(made.id);
    vmm.write(1, "0 64k");
    let files = scene.files();
    vmm.mood = Mood::Refuses;
    let error = scene.live_snapshot(made.id, "one", &mut vmm).unwrap_err();
    assert!(matches!(error, PoolError::LiveDisk { .. }), "{error}");
    assert_eq!(scene.files(), files);
    vmm.mood = Mood::Willing;
    vmm.write(2, "0 4k");
    scene.live_snapshot(made.id, "one", &mut vmm).unwrap();
    assert_eq!(scene.read_snapshot(made.id, "one", 0, 4096), [2; 4096]);
}

#[test]
fn a_file_that_the_vmm_holds_in_spite_of_its_refusal_is_not_taken_from_it() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let mut vmm = scene.boot(made.id);
    vmm.write(1, "0 64k");
    vmm.mood = Mood::RefusesAndHolds;
    scene.live_snapshot(made.id, "one", &mut vmm).unwrap_err();
    assert_eq!(scene.layers(), 2);
    assert_eq!(scene.names_of_snapshots(made.id), [""; 0]);
    vmm.holder.as_mut().unwrap().kill();
    assert_eq!(scene.read(made.id, 0, 512), [1; 512]);
    scene.is_sound(made.id);
}

#[test]
fn a_kill_before_the_machine_was_told_costs_nothing() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let mut vmm = scene.boot(made.id);
    vmm.write(1, "0 64k");
    vmm.mood = Mood::Dies;
    let killed = catch_unwind(AssertUnwindSafe(|| {
        scene.live_snapshot(made.id, "one", &mut vmm)
    }));
    assert!(killed.is_err());
    // The machine knows nothing of it and writes on; whoever looks sees that.
    vmm.write(2, "0 4k");
    assert_ne!(vmm.file, scene.top(made.id));
    assert_eq!(scene.read(made.id, 0, 4096), [2; 4096]);
    assert_eq!(scene.names_of_snapshots(made.id), [""; 0]);
    // A later snapshot works, with the file that is there, and holds what was written to the old.
    vmm.mood = Mood::Willing;
    let layers = scene.layers();
    scene.live_snapshot(made.id, "two", &mut vmm).unwrap();
    assert_eq!((scene.layers(), &vmm.file), (layers, &scene.top(made.id)));
    vmm.write(3, "0 512");
    assert_eq!(scene.read_snapshot(made.id, "two", 0, 4096), [2; 4096]);
    assert_eq!(scene.read(made.id, 0, 512), [3; 512]);
    assert_eq!(scene.delete(made.id, "two"), Changed::Yes);
    assert_eq!(scene.read(made.id, 512, 512), [2; 512]);
    scene.is_sound(made.id);
    let _ = scene.pool.remove(made.id).unwrap();
    assert_eq!(scene.files(), [""; 0]);
}

#[test]
fn a_long_chain_is_flattened_by_the_machine() {
    if !ready() {
        return;
    }
    let scene = scene();
    let made = scene.create(MIB);
    let mut vmm = scene.boot(made.id);
    for round in 0..80_u8 {
        vmm.write(round + 1, &format!("{} 512", u64::from(round) * 512));
        scene.live_snapshot(made.id, "passing", &mut vmm).unwrap();
        assert_eq!(scene.delete(made.id, "passing"), Changed::Yes);
    }
    assert!(scene.layers() <= 65, "{:?}", scene.files());
    for round in 0..80_u8 {
        assert_eq!(
            scene.read(made.id, u64::from(round) * 512, 512),
            [round + 1; 512]
        );
    }
    assert_eq!(scene.pool.facts(made.id).unwrap().size, Bytes::from_mib(1));
    scene.is_sound(made.id);
}
