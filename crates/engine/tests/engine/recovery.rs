//! What a kill at any instant leaves is finished or undone by the next operation, and nothing
//! that was reported done is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use sistemo::images::NewImport;
use sistemo::machines::{StopRequest, Wait};
use sistemo::model::{MachineName, SnapshotKind};
use sistemo::{Engine, Notice};
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_host::program::{self, Program};
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{House, MIB, example, files_in, plan, reference, reflinks, wait_until};

const PATTERN: u64 = MIB;

/// The volumes and machines that there must be, as the churn's diaries tell it.
#[derive(Clone, Debug, Default)]
struct World {
    volumes: BTreeMap<String, Kept>,
    /// The deleted ones that can be restored.
    trash: BTreeMap<String, Kept>,
    machines: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Kept {
    size_mb: u64,
    pool: String,
    machine: Option<String>,
    content: Option<Content>,
    /// Its snapshots by name, each with the size and content that it keeps.
    snapshots: BTreeMap<String, (u64, Option<Content>)>,
    /// Those of them that are pinned.
    pinned: BTreeSet<String>,
    /// The size that it had before it was taken back, where that was kept.
    replaced: Option<u64>,
}

/// A word written over and over, for [`PATTERN`] bytes.
#[derive(Clone, Debug)]
struct Content {
    word: String,
    from: u64,
}

impl Kept {
    fn pin(&mut self, how: &str, snapshot: &str) {
        let changed = match how {
            "pin" => self.pinned.insert(snapshot.to_owned()),
            _ => self.pinned.remove(snapshot),
        };
        assert!(changed, "{how} {snapshot}");
    }
}

impl World {
    /// Does what a line of the diary says.
    fn apply(&mut self, line: &str) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let kept = |size: &str| Kept {
            size_mb: size.parse().unwrap(),
            pool: "default".to_owned(),
            machine: None,
            content: None,
            snapshots: BTreeMap::new(),
            pinned: BTreeSet::new(),
            replaced: None,
        };
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["create", name, size] => {
                self.volumes.insert(name.to_owned(), kept(size));
            }
            ["write", name, word] => self.volume(name).content = Some(Content::at_the_end(word)),
            ["forget", name] => self.volume(name).content = None,
            ["snapshot", name, snapshot] => {
                let volume = self.volume(name);
                let now = (volume.size_mb, volume.content.clone());
                volume.snapshots.insert(snapshot.to_owned(), now);
            }
            ["unsnapshot", name, snapshot] => {
                self.volume(name).snapshots.remove(snapshot).unwrap();
            }
            [how @ ("pin" | "unpin"), name, snapshot] => self.volume(name).pin(how, snapshot),
            [how @ ("revert" | "revert-keeping"), name, snapshot] => {
                let volume = self.volume(name);
                volume.replaced = (how == "revert-keeping").then_some(volume.size_mb);
                (volume.size_mb, volume.content) = volume.snapshots[snapshot].clone();
            }
            ["clone-now", name] => {
                let Kept {
                    size_mb, content, ..
                } = self.volume(name).clone();
                let clone = Kept {
                    content,
                    ..kept(&size_mb.to_string())
                };
                self.volumes.insert(format!("{name}-now"), clone);
            }
            ["clone-kept", name] => {
                let (size_mb, content) = self.volume(name).snapshots["kept"].clone();
                let clone = Kept {
                    content,
                    ..kept(&size_mb.to_string())
                };
                self.volumes.insert(format!("{name}-kept"), clone);
            }
            ["import", name, word] => {
                let content = Some(Content::at_the_end(word));
                let imported = Kept {
                    content,
                    ..kept("16")
                };
                self.volumes.insert(name.to_owned(), imported);
            }
            ["move", name, to] => to.clone_into(&mut self.volume(name).pool),
            ["grow", name, size] => self.volume(name).size_mb = size.parse().unwrap(),
            ["rename", name, to] => {
                let volume = self.volumes.remove(name).unwrap();
                self.volumes.insert(to.to_owned(), volume);
            }
            ["deploy", name, volume] => {
                let machine = Some(name.to_owned());
                self.machines.insert(name.to_owned());
                self.volume(volume).machine.clone_from(&machine);
                let content = Some(Content {
                    word: "disk".to_owned(),
                    from: 0,
                });
                let root = Kept {
                    machine,
                    content,
                    ..kept("16")
                };
                self.volumes.insert(format!("{name}-root"), root);
            }
            ["clone-machine", name, volume] => self.clone_machine(name, volume),
            ["undeploy", name] => {
                assert!(self.machines.remove(name), "{line}");
                self.trash(&format!("{name}-root"));
                for volume in self.volumes.values_mut() {
                    volume.machine.take_if(|machine| machine == name);
                }
            }
            ["delete", name] => self.trash(name),
            ["restore", name] => {
                let kept = self.trash.remove(name).unwrap();
                self.volumes.insert(name.to_owned(), kept);
            }
            ["destroy", name] => {
                self.volumes.remove(name).unwrap();
            }
            ["empty", name] => {
                self.trash.remove(name).unwrap();
            }
            _ => panic!("what is `{line}`?"),
        }
    }

    /// A machine with clones of a machine's root and of a volume.
    fn clone_machine(&mut self, name: &str, volume: &str) {
        let twin = format!("{name}-twin");
        let sources = [
            (format!("{name}-root"), "root"),
            (volume.to_owned(), volume),
        ];
        for (source, clone) in sources {
            let clone_of_it = Kept {
                machine: Some(twin.clone()),
                snapshots: BTreeMap::new(),
                ..self.volume(&source).clone()
            };
            self.volumes.insert(format!("{twin}-{clone}"), clone_of_it);
        }
        self.machines.insert(twin);
    }

    fn trash(&mut self, name: &str) {
        let mut kept = self.volumes.remove(name).unwrap();
        kept.machine = None;
        self.trash.insert(name.to_owned(), kept);
    }

    fn volume(&mut self, name: &str) -> &mut Kept {
        self.volumes.get_mut(name).unwrap()
    }

    /// Does what a diary says was done, and returns what was under way at the last.
    fn replay(&mut self, diary: &str) -> Option<String> {
        let mut under_way = None;
        for line in diary.split_inclusive('\n') {
            // Cut off by the kill, so that what it tells had not begun.
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            match (under_way.take(), line) {
                (Some(operation), "done") => self.apply(operation),
                (None, operation) => under_way = Some(operation),
                (Some(operation), line) => panic!("{operation} was followed by {line}"),
            }
        }
        under_way.map(str::to_owned)
    }

    /// Compares it with what there is; the error says what differs.
    fn compare(&self, engine: &Engine) -> Result<(), String> {
        let found = engine.volumes().unwrap();
        let listed: BTreeMap<_, _> = found
            .iter()
            .map(|volume| {
                let machine = volume.attached_to.as_ref().map(MachineName::as_str);
                let pool = volume.pool.as_str();
                (volume.name.as_str(), (volume.size_mb, pool, machine))
            })
            .collect();
        let expected: BTreeMap<_, _> = self
            .volumes
            .iter()
            .map(|(name, kept)| {
                let machine = kept.machine.as_deref();
                (name.as_str(), (kept.size_mb, kept.pool.as_str(), machine))
            })
            .collect();
        if listed != expected {
            return Err(format!("volumes {listed:?} instead of {expected:?}"));
        }
        let trash: BTreeMap<_, _> = engine
            .trash()
            .unwrap()
            .into_iter()
            .map(|volume| (volume.name.to_string(), volume.size_mb))
            .collect();
        let kept = self.trash.iter();
        let expected: BTreeMap<_, _> = kept
            .map(|(name, kept)| (name.clone(), kept.size_mb))
            .collect();
        if trash != expected {
            return Err(format!("trash {trash:?} instead of {expected:?}"));
        }
        let machines = engine.machines().unwrap();
        let machines: BTreeSet<_> = machines.iter().map(|m| m.name.to_string()).collect();
        if machines != self.machines {
            return Err(format!(
                "machines {machines:?} instead of {:?}",
                self.machines
            ));
        }
        for volume in found {
            let kept = &self.volumes[volume.name.as_str()];
            let path = volume
                .path
                .ok_or_else(|| format!("volume {} has no file", volume.name))?;
            if kept.content.as_ref().is_some_and(|it| !it.is_in(&path)) {
                return Err(format!("volume {} has lost its content", volume.name));
            }
            let there = engine.snapshots(&reference(volume.name.as_str())).unwrap();
            let (replaced, there): (Vec<_>, Vec<_>) = there
                .into_iter()
                .partition(|snapshot| snapshot.kind == SnapshotKind::Replaced);
            let there: Vec<_> = there
                .iter()
                .map(|snapshot| (snapshot.name.as_str(), snapshot.pinned))
                .collect();
            let expected: Vec<_> = kept
                .snapshots
                .keys()
                .map(|name| (name.as_str(), kept.pinned.contains(name)))
                .collect();
            if there != expected {
                return Err(format!("snapshots {there:?} of {}", volume.name));
            }
            let replaced: Vec<_> = replaced.iter().map(|snapshot| snapshot.size_mb).collect();
            let as_expected = match kept.replaced {
                Some(size) => replaced == [size],
                // A revert that was killed may have kept what it did not replace.
                None => replaced.is_empty() || replaced == [kept.size_mb],
            };
            if !as_expected {
                return Err(format!("{replaced:?} was replaced in {}", volume.name));
            }
        }
        Ok(())
    }
}

impl Content {
    /// What the churn writes: the last MiB of the volumes it makes.
    fn at_the_end(word: &str) -> Content {
        let (word, from) = (word.to_owned(), 15 * MIB);
        Content { word, from }
    }

    fn bytes(&self) -> Vec<u8> {
        let bytes = self.word.bytes().cycle().zip(0..PATTERN);
        bytes.map(|(byte, _)| byte).collect()
    }

    fn is_in(&self, path: &Path) -> bool {
        let expected = self.bytes();
        let mut found = vec![0; expected.len()];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut found, self.from).is_ok() && found == expected
    }
}

/// Makes an image named `disk` that is one pattern, so that root volumes can be told from holes.
fn import_pattern(house: &House) {
    let word = "disk".to_owned();
    let file = house.path("disk.img");
    let pattern = Content { word, from: 0 }.bytes();
    let disk = File::create(&file).unwrap();
    disk.write_all_at(&pattern, 0).unwrap();
    let new = NewImport {
        file,
        name: "disk".parse().unwrap(),
        kernel: None,
        initrd: None,
        format: None,
        pool: None,
    };
    house.engine().import_image(new).unwrap();
}

#[test]
fn whatever_is_killed_whenever_nothing_is_half_made_and_nothing_is_lost() {
    let house = House::new();
    house.storage_conf(&other_pool(&house));
    churn_and_kill(&house, &house.data_dir().join("volumes"), 45);
}

#[test]
fn so_it_is_where_clones_are_instant_and_images_stand_in_the_pool() {
    let Some(filesystem) = reflinks() else { return };
    let house = House::new();
    let place = filesystem.path().join("volumes");
    house.storage_conf(&format!(
        "[default]\ndriver = file\ndir_path = {}\n{}",
        place.display(),
        other_pool(&house)
    ));
    churn_and_kill(&house, &place, 30);
}

/// A pool for volumes to be moved to, where nothing is shared.
fn other_pool(house: &House) -> String {
    let place = house.path("other");
    format!("[other]\ndriver = file\ndir_path = {}\n", place.display())
}

fn churn_and_kill(house: &House, place: &Path, rounds: u64) {
    import_pattern(house);
    let mut world = World::default();
    let mut recovered = 0;
    for round in 0..rounds {
        let diary_path = house.path(&format!("diary-{round}"));
        let diary = File::create(&diary_path).unwrap();
        let mut churn = Program::at(&example("churn"))
            .arg(house.data_dir())
            .arg(round.to_string())
            .spawn_logged(diary)
            .unwrap();
        // Instants spread over a few operations, the same in every run of the test.
        std::thread::sleep(Duration::from_millis(20 + (round * 37) % 211));
        churn.kill();

        house.notices();
        // A program that outlived its parent may still be writing; then the next look recovers.
        wait_until("recovery", || {
            let engine = house.engine();
            // A kill at the first use of a pool leaves a file beside the marker to come.
            let mut files = files_in(place);
            files.extend(files_in(&house.path("other")));
            files.retain(|name| !name.starts_with(".sistemo-pool."));
            // Snapshots, and what is left of taking one until the volume is next changed.
            files.retain(|name| !name.contains('@'));
            let default = engine.pool_view(&"default".parse().unwrap()).unwrap();
            let volumes = engine.volumes().unwrap().len() + engine.trash().unwrap().len();
            files.len() == (volumes + default.images) * 2
        });
        let is_recovery = |notice: &Notice| matches!(notice, Notice::Recovered { .. });
        recovered += house.notices().iter().filter(|n| is_recovery(n)).count();
        let engine = house.engine();
        for volume in engine.volumes().unwrap() {
            assert_eq!(volume.reason, None, "{}", volume.name);
        }
        let under_way = world.replay(&std::fs::read_to_string(&diary_path).unwrap());
        let mut moved_on = world.clone();
        if let Some(operation) = &under_way {
            moved_on.apply(operation);
        }
        world = match (moved_on.compare(&engine), world.compare(&engine)) {
            (Ok(()), _) => moved_on,
            (_, Ok(())) => world,
            (Err(done), Err(not_done)) => {
                panic!("{under_way:?} is neither done: {done}\nnor not done: {not_done}")
            }
        };
    }
    assert!(
        recovered > 0,
        "no kill hit an operation: the test shows nothing"
    );
    let written = world.volumes.values().any(|kept| kept.content.is_some());
    assert!(written, "no volume was kept: the test shows nothing");
}

#[test]
fn a_start_that_is_killed_anywhere_leaves_a_machine_that_starts() {
    if !met(&[
        Requirement::TinyGuest,
        Requirement::Program("qemu-system-x86_64"),
    ]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, &[Action::WaitForButton, Action::PowerOff]);
    let id = engine.deploy(&plan("tiny", "m")).unwrap().id.to_string();
    let qemu = program::locate("qemu-system-x86_64").unwrap();
    let vmms = || crate::running::processes(qemu.to_str().unwrap(), &id);
    for round in 0..6_u64 {
        let starter = std::thread::scope(|scope| {
            let start = scope.spawn(|| house.engine().start_machine(&reference("m"), Wait::No));
            // Before there is one, nothing of this start can be killed.
            wait_until("a monitor", || !crate::running::monitors(&id).is_empty());
            std::thread::sleep(Duration::from_millis(round * 60));
            for pid in crate::running::monitors(&id) {
                if let Ok(Some(monitor)) = ProcessIdentity::of(pid) {
                    monitor.end(Ending::Kill).unwrap();
                }
            }
            start.join().unwrap()
        });
        report(&starter);
        // Whatever is left, it is one of the two, and not for ever on its way.
        wait_until("a settled machine", || {
            let status = engine.machine(&reference("m")).unwrap().status;
            status == "running" || status == "stopped"
        });
        let (_, _) = engine.start_machine(&reference("m"), Wait::No).unwrap();
        let running = engine.machine(&reference("m")).unwrap();
        assert_eq!(running.status, "running");
        assert_eq!(vmms(), [running.pid.unwrap()], "one VMM is found");
        let (_, _) = engine
            .stop_machine(&reference("m"), StopRequest::Forced)
            .unwrap();
        assert_eq!(vmms(), [0; 0], "a VMM was left behind");
    }
}

/// Either outcome is right: what matters is the state that is left.
fn report<T, E: std::fmt::Display>(outcome: &Result<T, E>) {
    if let Err(error) = outcome {
        eprintln!("the killed start said: {error}");
    }
}
