//! What a kill at any instant leaves is finished or undone by the next operation, and nothing
//! that was reported done is lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use sistemo::machines::{StopRequest, Wait};
use sistemo_host::process::{Ending, ProcessIdentity};
use sistemo_host::program::Program;
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{House, MIB, example, plan, reference, wait_until};

/// What the churn's diary says: each volume's size in MiB, and `None` for one that is gone.
fn last_words(diary: &str) -> BTreeMap<String, Option<u64>> {
    let mut state = BTreeMap::new();
    // A line that was cut off by the kill has no line feed.
    for line in diary
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
    {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["made", name, size] => state.insert((*name).to_owned(), size.parse().ok()),
            ["gone", name] => state.insert((*name).to_owned(), None),
            _ => panic!("what is {line}?"),
        };
    }
    state
}

#[test]
fn whatever_is_killed_whenever_nothing_is_half_made_and_nothing_is_lost() {
    let house = House::new();
    house.import_disk(&house.engine(), MIB);
    let mut recovered = 0;
    for round in 0..30_u64 {
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
        let engine = house.engine();
        // A program that outlived its parent may still be writing; then the next look recovers.
        wait_until("recovery", || {
            let engine = house.engine();
            let files = engine.volumes().unwrap().len() * 2;
            house.volume_files().len() == files
        });
        recovered += house.notices().len();
        let volumes = engine.volumes().unwrap();
        for volume in &volumes {
            assert_eq!(volume.reason, None, "{}", volume.name);
        }
        let there: BTreeMap<&str, u64> = volumes
            .iter()
            .map(|volume| (volume.name.as_str(), volume.size_mb))
            .collect();
        let told = last_words(&std::fs::read_to_string(&diary_path).unwrap());
        let last = told.keys().next_back().cloned();
        for (name, size) in told {
            // The operation under way when it was killed may have been done or not.
            let may_have_moved_on = |now: &u64| size.is_none_or(|size| *now >= size);
            match (there.get(name.as_str()), size) {
                (Some(now), _) => assert!(may_have_moved_on(now), "{name} has {now} MB"),
                (None, None) => {}
                (None, Some(_)) => {
                    // Renamed or deleted at the very end, and not told any more.
                    let renamed = format!("{name}-renamed");
                    let at_the_end = there.contains_key(renamed.as_str())
                        || name.ends_with("-root")
                        || last.as_ref().is_some_and(|last| last.contains(&name))
                        || name.ends_with("-renamed");
                    assert!(at_the_end, "{name} is lost");
                }
            }
        }
    }
    assert!(
        recovered > 0,
        "no kill hit an operation: the test shows nothing"
    );
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
    for round in 0..6_u64 {
        let starter = std::thread::scope(|scope| {
            let start = scope.spawn(|| house.engine().start_machine(&reference("m"), Wait::No));
            std::thread::sleep(Duration::from_millis(5 + round * 60));
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
        assert_eq!(engine.machine(&reference("m")).unwrap().status, "running");
        let (_, _) = engine
            .stop_machine(&reference("m"), StopRequest::Forced)
            .unwrap();
        let alive = crate::running::processes("/usr/bin/qemu-system-x86_64", &id);
        assert!(alive.is_empty(), "a VMM was left behind: {alive:?}");
    }
}

/// Either outcome is right: what matters is the state that is left.
fn report<T, E: std::fmt::Display>(outcome: &Result<T, E>) {
    if let Err(error) = outcome {
        eprintln!("the killed start said: {error}");
    }
}
