//! What a machine's stop says about its volumes, and what is done about it.

use sistemo::Engine;
use sistemo::machines::StopRequest;
use sistemo::model::{History, StopHow, Volume};
use sistemo_catalog::Catalogue;
use sistemo_testkit::Action;

use crate::fixture::{House, reference, start, volume, wait_until};
use crate::running::{GRACEFUL, console_shows, guest, kill, monitors, wait_for_end};

pub(crate) fn record(house: &House, name: &str) -> Volume {
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue
        .read(|session| session.find_volume(&reference(name)))
        .unwrap()
}

pub(crate) fn history(house: &House, name: &str) -> History {
    record(house, name).history
}

pub(crate) fn stop(engine: &Engine, how: StopRequest) {
    let _stopped = engine.stop_machine(&reference("m"), how).unwrap();
}

/// Whether nothing is left to be done.
pub(crate) fn settled(house: &House) -> bool {
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue
        .read(|session| session.intents())
        .unwrap()
        .is_empty()
}

/// Whether the description beside a volume says what the catalogue does.
pub(crate) fn described(house: &House, name: &str) -> bool {
    let record = record(house, name);
    let file = house.data_dir().join(format!("volumes/{}.json", record.id));
    let text = std::fs::read(file).unwrap();
    let said: serde_json::Value = serde_json::from_slice(&text).unwrap();
    said["history"] == serde_json::to_value(&record.history).unwrap()
}

#[test]
fn a_machine_leaves_its_volumes_clean_or_dirty_as_it_stops() {
    let Some((house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    assert_eq!(history(&house, "data").changed, None);
    start(&engine, "m");
    let started = history(&house, "data").changed.unwrap();
    stop(&engine, StopRequest::Forced);
    for name in ["m-root", "data"] {
        let history = history(&house, name);
        assert!(history.dirty, "{name} was torn away");
        assert!(history.changed.unwrap() > started);
        // What belongs to a stop is done when the command that stopped it returns.
        assert!(described(&house, name), "{name}");
    }
    assert!(settled(&house));
}

#[test]
fn a_guest_that_goes_by_itself_is_cleaned_up_after_by_its_monitor() {
    let Some((house, engine)) = guest(&[Action::PowerOff]) else {
        return;
    };
    volume(&engine, "read", "16M");
    let read_only = sistemo::model::Access::ReadOnly;
    engine
        .attach_volume(&reference("m"), &reference("read"), read_only)
        .unwrap();
    start(&engine, "m");
    // Nobody but its monitor is there to see it end.
    wait_until("the stop, and what belongs to it", || {
        history(&house, "data").changed.is_some() && settled(&house) && described(&house, "data")
    });
    assert_eq!(wait_for_end(&engine), Some(StopHow::Clean));
    assert!(!history(&house, "data").dirty);
    assert!(
        history(&house, "read").is_empty(),
        "what a machine may only read does not change"
    );
}

#[test]
fn a_stop_that_nobody_saw_is_made_up_for_by_the_next_command() {
    let Some((house, engine)) = guest(&[Action::Count]) else {
        return;
    };
    let started = start(&engine, "m");
    console_shows(&engine, "count 1");
    for monitor in monitors(&started.id.to_string()) {
        kill(monitor);
    }
    kill(started.pid.unwrap());
    assert!(!history(&house, "data").dirty, "nobody has looked yet");
    let machine = engine.machine(&reference("m")).unwrap();
    assert_eq!(machine.stopped_how, Some(StopHow::Crashed));
    assert!(history(&house, "data").dirty);
    assert!(settled(&house) && described(&house, "data"));
}

#[test]
fn a_clean_stop_makes_up_for_an_unclean_one() {
    let Some((house, engine)) = guest(&[Action::WaitForButton, Action::PowerOff]) else {
        return;
    };
    start(&engine, "m");
    stop(&engine, StopRequest::Forced);
    assert!(history(&house, "data").dirty);
    start(&engine, "m");
    stop(&engine, GRACEFUL);
    assert!(!history(&house, "data").dirty);
    assert!(settled(&house) && described(&house, "data"));
}
