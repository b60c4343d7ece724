use sistemo_model::{Access, Filesystem, Lifetime, MachineState, Volume};

use crate::fixture::{Home, machine, volume};

#[test]
fn a_root_that_is_made_anew_is_known_by_its_machine() {
    let home = Home::new();
    let template = home.add_volume("t-root");
    let root = home.add_volume("d-root");
    let data = home.add_volume("data");
    let made = machine("d", 2001);
    let mut made = made;
    made.template = Some(template);
    home.write(|tx| {
        tx.insert_machine(&made)?;
        tx.attach(made.id, root, 0, Access::ReadWrite)?;
        tx.attach(made.id, data, 1, Access::ReadWrite)
    });
    let found = home.read(|s| s.disposable(root)).unwrap();
    assert_eq!((found.machine, found.template), (made.id, template));
    assert_eq!(found.machine_name, made.name);
    assert_eq!(found.template_name.as_str(), "t-root");
    assert!(!found.active);
    assert_eq!(home.read(|s| s.disposables()).len(), 1);
    for other in [template, data] {
        assert_eq!(home.read(|s| s.disposable(other)), None);
    }
    assert_eq!(home.read(|s| s.based_on(template)), [made.name]);
    assert!(home.read(|s| s.based_on(root)).is_empty());

    home.write(|tx| tx.set_machine_state(made.id, MachineState::Starting));
    assert!(home.read(|s| s.disposable(root)).unwrap().active);
}

#[test]
fn a_volume_that_is_made_anew_keeps_its_id_and_name() {
    let home = Home::new();
    let before = volume("d-root");
    home.write(|tx| tx.insert_volume(&before));
    let anew = Volume {
        size: "128M".parse().unwrap(),
        filesystem: Filesystem::None,
        ..before.clone()
    };
    home.write(|tx| tx.renew_volume(&anew));
    let found = home.read(|s| s.volume(before.id));
    assert_eq!((found.size, found.filesystem), (anew.size, anew.filesystem));
    assert_eq!((found.name, found.created), (before.name, before.created));
    assert_ne!(found.modified, before.modified);
}

#[test]
fn ephemeral_machines_are_found_while_they_are_active() {
    let home = Home::new();
    let mut lasting = machine("a", 2001);
    lasting.state = MachineState::Running;
    let mut ephemeral = machine("b", 2002);
    ephemeral.state = MachineState::Running;
    ephemeral.lifetime = Lifetime::Ephemeral;
    for machine in [&lasting, &ephemeral] {
        home.write(|tx| tx.insert_machine(machine));
    }
    assert_eq!(home.read(|s| s.active_ephemeral()), [ephemeral.id]);
    home.write(|tx| tx.set_lifetime(ephemeral.id, Lifetime::Persistent));
    assert!(home.read(|s| s.active_ephemeral()).is_empty());
}
