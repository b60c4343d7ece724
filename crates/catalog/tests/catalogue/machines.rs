use sistemo_catalog::{CatalogError, RunningProcess, Transaction};
use sistemo_model::{
    Accelerator, Access, Bytes, Lifecycle, MachineId, MachineState, PauseCause, Reference, StopHow,
    VcpuCount,
};

use crate::fixture::{Home, Result, long_ago, machine, some_process};

const ALL_STATES: [MachineState; 12] = [
    MachineState::Starting,
    MachineState::Running,
    MachineState::Paused(PauseCause::Requested),
    MachineState::Paused(PauseCause::DiskFull),
    MachineState::Paused(PauseCause::DiskError),
    MachineState::Stopping(StopHow::Clean),
    MachineState::Stopping(StopHow::Forced),
    MachineState::Stopping(StopHow::Crashed),
    MachineState::Stopped(None),
    MachineState::Stopped(Some(StopHow::Clean)),
    MachineState::Stopped(Some(StopHow::Forced)),
    MachineState::Stopped(Some(StopHow::Crashed)),
];

fn running() -> RunningProcess {
    RunningProcess {
        process: some_process(),
        accelerator: Accelerator::Tcg,
    }
}

#[test]
fn a_machine_reads_back_as_it_was_recorded_in_every_state() {
    let home = Home::new();
    let mut expected = Vec::new();
    for (port, state) in (2200..).zip(ALL_STATES) {
        let mut machine = machine(&format!("m{port}"), port);
        machine.state = state;
        machine.exposed = vec!["8080:80".parse().unwrap(), "[::1]:443:443".parse().unwrap()];
        machine.autostart = port % 2 == 0;
        machine.owns_root = port % 2 == 1;
        machine.image = (port % 3 == 0).then(|| "debian".parse().unwrap());
        home.write(|tx| tx.insert_machine(&machine));
        assert_eq!(home.read(|s| s.machine(machine.id)), machine);
        expected.push(machine);
    }
    assert_eq!(home.read(|s| s.machines()), expected);
    assert_eq!(home.read(|s| s.ssh_ports()), (2200..2212).collect());
}

#[test]
fn a_machine_moves_only_as_its_state_allows() {
    let home = Home::new();
    for (from_number, from) in ALL_STATES.into_iter().enumerate() {
        for (to_number, to) in ALL_STATES.into_iter().enumerate() {
            let mut machine = machine(&format!("m{from_number}-{to_number}"), 2200);
            machine.state = from;
            let result = home.catalogue.write(|tx| {
                tx.insert_machine(&machine)?;
                let moved = tx.set_machine_state(machine.id, to);
                let state = tx.machine(machine.id)?.state;
                assert_eq!(state, if moved.is_ok() { to } else { from });
                moved.and(Err(CatalogError::NotFound {
                    kind: sistemo_catalog::Kind::Machine,
                    reference: Reference::from("roll back"),
                })) as Result<()>
            });
            let allowed = matches!(result, Err(CatalogError::NotFound { .. }));
            let refused = matches!(result, Err(CatalogError::IllegalTransition { .. }));
            assert_eq!(allowed, from.can_become(to), "{from} {to}");
            assert_eq!(refused, !from.can_become(to), "{from} {to}");
        }
    }
}

#[test]
fn a_stopped_machine_has_no_process() {
    let home = Home::new();
    let id = home.add_machine("db1", 2201);
    let error = home.refused(|tx| tx.set_process(id, Some(&running())));
    assert_eq!(
        error.to_string(),
        "machine db1 is stopped and has no process"
    );

    home.write(|tx| {
        tx.set_machine_state(id, MachineState::Starting)?;
        tx.set_process(id, Some(&running()))?;
        tx.set_machine_state(id, MachineState::Running)
    });
    assert_eq!(home.read(|s| s.process(id)), Some(running()));
    assert_eq!(home.read(|s| s.all_processes()), [(id, running())].into());

    let crashed = MachineState::Stopped(Some(StopHow::Crashed));
    home.write(|tx| tx.set_machine_state(id, crashed));
    assert_eq!(home.read(|s| s.process(id)), None);
    assert!(home.read(|s| s.all_processes()).is_empty());
}

#[test]
fn a_running_machine_is_not_deleted_and_keeps_its_volumes() {
    let home = Home::new();
    let (id, pgdata) = (home.add_machine("db1", 2201), home.add_volume("pgdata"));
    home.write(|tx| {
        tx.attach(id, pgdata, 1, Access::ReadWrite)?;
        tx.set_machine_state(id, MachineState::Starting)
    });
    let error = home.refused(|tx| tx.delete_machine(id));
    assert_eq!(error.to_string(), "machine db1 is starting");
    assert!(home.read(|s| s.holder_of(pgdata)).is_some());
}

#[test]
fn a_deleted_machine_frees_its_volumes_ports_and_name() {
    let home = Home::new();
    let pgdata = home.add_volume("pgdata");
    let mut first = machine("db1", 2201);
    first.exposed = vec!["8080:80".parse().unwrap()];
    home.write(|tx| {
        tx.insert_machine(&first)?;
        tx.attach(first.id, pgdata, 1, Access::ReadWrite)?;
        tx.set_machine_lifecycle(first.id, Lifecycle::Deleting)?;
        tx.delete_machine(first.id)
    });
    assert!(home.read(|s| s.holder_of(pgdata)).is_none());
    let again = home.add_machine("db1", 2201);
    assert!(home.read(|s| s.machine(again)).exposed.is_empty());
    home.write(|tx| tx.attach(again, pgdata, 1, Access::ReadWrite));
}

#[test]
fn names_ids_and_ports_of_machines_are_unique() {
    let home = Home::new();
    let first = home.add_machine("db1", 2201);
    let second = home.add_machine("db2", 2202);
    let mut twin = machine("db3", 2203);
    twin.id = first;
    let errors = [
        (
            home.refused(|tx| tx.insert_machine(&machine("db1", 2203))),
            "the machine name `db1` is taken".to_owned(),
        ),
        (
            home.refused(|tx| tx.rename_machine(second, &"db1".parse().unwrap())),
            "the machine name `db1` is taken".to_owned(),
        ),
        (
            home.refused(|tx| tx.insert_machine(&machine(&first.to_string(), 2203))),
            format!("the machine name `{first}` is taken"),
        ),
        (
            home.refused(|tx| tx.insert_machine(&twin)),
            format!("the machine ID {first} is taken"),
        ),
        (
            home.refused(|tx| tx.insert_machine(&machine("db3", 2201))),
            "SSH port 2201 belongs to machine db1".to_owned(),
        ),
        (
            home.refused(|tx| tx.set_ssh_port(second, 2201)),
            "SSH port 2201 belongs to machine db1".to_owned(),
        ),
    ];
    for (error, expected) in errors {
        assert_eq!(error.to_string(), expected);
    }
    // A volume may have a machine's name: they are unique per kind.
    home.add_volume("db1");
}

type Change = fn(&Transaction<'_>, MachineId) -> Result<()>;

#[test]
fn every_change_of_a_machine_is_dated() {
    let home = Home::new();
    let changes: [Change; 8] = [
        |tx, id| tx.rename_machine(id, &"renamed".parse().unwrap()),
        |tx, id| tx.set_resources(id, VcpuCount::try_from(4).unwrap(), Bytes::from_mib(1024)),
        |tx, id| tx.set_autostart(id, true),
        |tx, id| tx.set_ssh_port(id, 2222),
        |tx, id| tx.set_exposed(id, &["80".parse().unwrap()]),
        |tx, id| tx.set_machine_state(id, MachineState::Starting),
        |tx, id| tx.set_process(id, None),
        |tx, id| tx.set_machine_lifecycle(id, Lifecycle::Deleting),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let before = machine(&format!("m{number}"), 2300 + u16::try_from(number).unwrap());
        home.write(|tx| tx.insert_machine(&before));
        home.write(|tx| change(tx, before.id));
        let after = home.read(|s| s.machine(before.id));
        assert!(after.modified > long_ago(), "change {number}");
        let mut undated = after.clone();
        undated.modified = before.modified;
        // Setting no process is the one change that shows nowhere else.
        assert_eq!(undated == before, number == 6, "change {number}");
        let missing = home.refused(|tx| change(tx, MachineId::random()));
        assert!(
            matches!(
                missing,
                CatalogError::NotFound { .. }
                    | CatalogError::NameTaken { .. }
                    | CatalogError::SshPortTaken { .. }
            ),
            "{missing}"
        );
    }
}

#[test]
fn a_machine_is_found_only_while_it_is_ready() {
    let home = Home::new();
    let id = home.add_machine("db1", 2201);
    let find = |text: &str| {
        home.catalogue
            .read(|s| s.find_machine(&Reference::from(text)))
    };
    assert_eq!(find("db1").unwrap().id, id);
    assert_eq!(find(&id.to_string()).unwrap().id, id);
    assert_eq!(find(&id.short()).unwrap().id, id);
    home.write(|tx| tx.set_machine_lifecycle(id, Lifecycle::Deleting));
    assert!(matches!(find("db1"), Err(CatalogError::NotFound { .. })));
    assert!(home.read(|s| s.machines()).is_empty());
    assert_eq!(home.read(|s| s.all_machines()).len(), 1);
    let error = home.refused(|tx| tx.set_machine_lifecycle(id, Lifecycle::Ready));
    assert!(
        matches!(error, CatalogError::IllegalLifecycle { .. }),
        "{error}"
    );
}
