//! The suite can fail: drivers that are broken on purpose, and the law that finds each.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod broken_pool;

use std::ops::ControlFlow;
use std::sync::Arc;

use broken_pool::{BrokenPool, Fault};
use sistemo_conformance::small::SmallPlace;
use sistemo_conformance::{Bench, Failure, Outcome, Place, Report, Task, check, laws, testing};
use sistemo_host::program::Program;
use sistemo_pools::{Pool, PoolError};
use sistemo_testkit::{Requirement, met};

fn open(place: &Place, fault: Fault) -> Result<Arc<dyn Pool>, PoolError> {
    Ok(Arc::new(BrokenPool::open(place, fault)?))
}

fn bench(fault: Fault) -> Bench {
    let home = tempfile::tempdir().unwrap();
    Bench::new(home.path(), move |place| open(place, fault)).keeping(home)
}

/// Tries one law, or all of them.
fn reports(bench: &Bench, law: Option<&str>) -> Vec<Report> {
    let of_name = |known: &&_| law.is_none_or(|law| law == name_of(known));
    let laws: Vec<_> = laws().iter().filter(of_name).copied().collect();
    let mut reports = Vec::new();
    let (_, remains) = check(bench, &laws, &mut |report| {
        reports.push(report.clone());
        ControlFlow::Continue(())
    });
    assert_eq!(remains, []);
    reports
}

fn name_of(law: &sistemo_conformance::Law) -> &'static str {
    law.name
}

/// Expects that a law finds a fault, and what it tells.
fn finds(law: &str, bench: &Bench) -> Failure {
    let mut reports = reports(bench, Some(law));
    assert_eq!(reports.len(), 1, "there is no law {law}");
    match reports.remove(0).outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{law} did not find it: {other:?}"),
    }
}

#[test]
fn the_pool_that_is_not_broken_keeps_every_law() {
    for report in reports(&bench(Fault::None), None) {
        let skipped = matches!(report.outcome, Outcome::Skipped { .. });
        assert!(
            matches!(
                report.outcome,
                Outcome::Passed | Outcome::NotClaimed { .. } | Outcome::Skipped { .. }
            ),
            "{report:?}"
        );
        // What this bench cannot try is tried by the drivers' own tests.
        let law = laws().iter().find(|law| law.name == report.law).unwrap();
        assert!(!skipped || !law.needs.is_empty(), "{report:?}");
    }
}

#[test]
fn a_clone_that_shares_later_writes_is_found() {
    let failure = finds(
        "a_clone_and_its_origin_never_see_each_others_writes",
        &bench(Fault::CloneSharesWrites),
    );
    assert!(
        failure.expected.starts_with("byte 100 of volume"),
        "{failure}"
    );
}

#[test]
fn a_removal_that_always_says_yes_is_found() {
    let failure = finds(
        "a_removed_volume_is_gone_and_removing_again_changes_nothing",
        &bench(Fault::RemoveAlwaysSaysYes),
    );
    assert_eq!(failure.expected, "removing it again to be No");
    assert_eq!(failure.happened, "got Yes");
}

#[test]
fn a_removal_that_leaves_the_volume_is_found() {
    let failure = finds(
        "a_removed_volume_is_gone_and_removing_again_changes_nothing",
        &bench(Fault::RemoveLeavesTheVolume),
    );
    assert!(failure.noticed_at.contains("removing.rs:"), "{failure}");
}

#[test]
fn a_filling_that_loses_the_holes_is_found() {
    let failure = finds(
        "a_draft_is_filled_without_the_holes",
        &bench(Fault::FillLosesHoles),
    );
    assert_eq!(failure.expected, "less than 1 MiB in use");
}

#[test]
fn a_growth_that_loses_data_is_found() {
    let failure = finds(
        "growing_keeps_the_data_and_adds_zeros",
        &bench(Fault::GrowLosesData),
    );
    assert!(failure.expected.contains("to be 0x6c"), "{failure}");
}

#[test]
fn a_verify_that_finds_nothing_is_found() {
    let failure = finds(
        "verify_finds_real_damage",
        &bench(Fault::VerifyFindsNothing),
    );
    assert!(failure.expected.contains("WrongSize"), "{failure}");
}

#[test]
fn a_snapshot_that_forgets_the_time_it_was_given_is_found() {
    let failure = finds(
        "a_snapshot_has_the_time_it_was_given",
        &bench(Fault::SnapshotForgetsItsTime),
    );
    assert!(failure.expected.contains("86400"), "{failure}");
}

#[test]
fn an_examination_that_leaves_the_snapshots_out_is_found() {
    let failure = finds(
        "examining_reads_the_snapshots_too",
        &bench(Fault::ExaminesTheVolumeAlone),
    );
    assert_eq!(failure.happened, "they were 3145728");
}

#[test]
fn a_copy_by_a_vmm_that_stays_when_it_is_given_up_is_found() {
    let failure = finds(
        "a_snapshot_that_a_vmm_writes_exists_with_its_commit",
        &bench(Fault::LiveDraftStays),
    );
    assert_eq!(failure.expected, "a draft that is gone");
}

#[test]
fn a_snapshot_whose_space_is_nobodys_is_found() {
    let failure = finds(
        "what_snapshots_share_with_their_volume_adds_up",
        &bench(Fault::SnapshotsAreFree),
    );
    assert!(
        failure.expected.contains("the snapshot uses alone"),
        "{failure}"
    );
}

#[test]
fn a_list_of_snapshots_that_lies_is_found() {
    let failure = finds(
        "a_volume_with_snapshots_is_one_volume",
        &bench(Fault::SnapshotListLies),
    );
    assert!(failure.expected.contains("[\"one\", \"two\"]"), "{failure}");
    assert_eq!(failure.happened, "got [\"two\"]");
}

#[test]
fn a_draft_that_is_a_volume_already_is_found() {
    let failure = finds(
        "a_draft_is_no_volume_and_dropped_leaves_nothing",
        &bench(Fault::DraftIsVisible),
    );
    assert!(failure.expected.contains("Draft {"), "{failure}");
    assert!(failure.happened.contains("Volume {"), "{failure}");
}

#[test]
fn a_revert_that_forgets_the_size_is_found() {
    let failure = finds(
        "reverting_takes_back_content_and_size",
        &bench(Fault::RevertForgetsSize),
    );
    assert!(failure.expected.starts_with("the description"), "{failure}");
}

#[test]
fn a_clone_that_reads_the_bytes_as_a_format_is_found() {
    let failure = finds(
        "what_looks_like_qcow2_is_raw",
        &bench(Fault::ProbesTheFormat),
    );
    assert_eq!(failure.expected, "the format to be Raw");
}

#[test]
fn a_power_that_is_told_of_and_not_there_is_found() {
    let bench = bench(Fault::None).with_powers(&[]);
    let failure = finds("the_powers_are_as_the_driver_says", &bench);
    assert_eq!(failure.expected, "the power to clone to be false");
}

#[test]
fn a_panic_is_found_and_the_other_laws_are_tried() {
    let bench = bench(Fault::DescribePanics);
    let failure = finds("describe_replaces_once", &bench);
    assert_eq!(failure.expected, "no panic");
    assert_eq!(failure.happened, "it panicked: nobody describes this");
    let first: Vec<_> = laws().iter().copied().take(2).collect();
    let describe = laws()
        .iter()
        .find(|law| law.name == "describe_replaces_once");
    let (counts, _) = check(
        &bench,
        &[&[*describe.unwrap()], &first[..]].concat(),
        &mut |_| ControlFlow::Continue(()),
    );
    assert_eq!((counts.failed, counts.passed + counts.not_claimed), (1, 2));
}

#[test]
fn a_fault_that_random_work_alone_meets_is_found_with_its_seed() {
    let law = "whatever_is_done_every_volume_holds_what_it_should";
    let bench = bench(Fault::ThirdSnapshotIsEmpty).with_seed(7);
    let failure = finds(law, &bench);
    assert!(failure.happened.contains("seed 7, step "), "{failure}");
    // The same seed finds it in the same place.
    assert_eq!(finds(law, &bench).expected, failure.expected);
}

#[test]
fn a_full_pool_that_is_told_of_as_another_failure_is_found() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.ext4")]) {
        return;
    }
    let bench = bench(Fault::FullIsUntold);
    let small = SmallPlace::like(bench.scratch());
    let failure = finds(
        "a_write_that_finds_the_pool_full_says_so",
        &bench.with_small_place(small),
    );
    assert!(failure.expected.contains("PoolError::Full"), "{failure}");
}

#[test]
fn a_commit_that_a_kill_can_tear_is_found() {
    let bench = bench(Fault::CommitsInSteps).with_worker(|task: &Task| {
        Program::at(&std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "worker_that_commits_in_steps"])
            .env("SISTEMO_CONFORMANCE_TASK", task.to_text())
    });
    let failure = finds(
        "whenever_it_is_killed_what_returned_is_there_and_the_rest_recovers",
        &bench,
    );
    assert!(failure.happened.contains("Undescribed"), "{failure}");
    assert!(failure.happened.contains("with seed"), "{failure}");
}

#[test]
#[ignore = "a task of another test"]
fn worker_that_commits_in_steps() {
    testing::work(&|place: &Place| open(place, Fault::CommitsInSteps));
}

#[test]
fn a_pool_that_holds_volumes_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let somebodys = Place {
        directory: home.path().join("somebodys"),
        catalogue: sistemo_model::CatalogueId::random(),
    };
    let pool = open(&somebodys, Fault::None).unwrap();
    let description = broken_pool::description();
    pool.draft(&description).unwrap().commit().unwrap();
    // A driver without a directory has one pool, whatever place it is given.
    let scratch = home.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let bench = Bench::new(&scratch, move |_| open(&somebodys, Fault::None));
    for report in reports(&bench, None) {
        let Outcome::Skipped { why } = report.outcome else {
            panic!("{report:?}");
        };
        assert!(why.contains("not empty"), "{why}");
    }
    assert_eq!(pool.description(description.id).unwrap(), description);
}

#[test]
fn a_check_ends_when_it_is_told_to() {
    let bench = bench(Fault::None);
    let mut seen = 0;
    let (counts, _) = check(&bench, laws(), &mut |_| {
        seen += 1;
        if seen == 3 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!((seen, counts.failed), (3, 0));
}
