//! Any sequence of changes has the outcome that a simple model of the rules says it has.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sistemo_catalog::{CatalogError, Transaction};
use sistemo_model::{Access, MachineId, VolumeId};

use crate::fixture::{Home, machine, volume};

#[derive(Clone, Copy, Debug)]
enum Change {
    CreateVolume(usize, usize),
    RenameVolume(usize, usize),
    DeleteVolume(usize),
    CreateMachine(usize),
    DeleteMachine(usize),
    Attach(usize, usize, u8),
    Detach(usize, usize),
}

const VOLUMES: usize = 4;
const MACHINES: usize = 2;
const NAMES: usize = 4;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let (v, m, n, p) = (0..VOLUMES, 0..MACHINES, 0..NAMES, 0..3_u8);
    let change = prop_oneof![
        3 => (v.clone(), n.clone()).prop_map(|(v, n)| Change::CreateVolume(v, n)),
        1 => (v.clone(), n).prop_map(|(v, n)| Change::RenameVolume(v, n)),
        1 => v.clone().prop_map(Change::DeleteVolume),
        2 => m.clone().prop_map(Change::CreateMachine),
        1 => m.clone().prop_map(Change::DeleteMachine),
        4 => (m.clone(), v.clone(), p).prop_map(|(m, v, p)| Change::Attach(m, v, p)),
        2 => (m, v).prop_map(|(m, v)| Change::Detach(m, v)),
    ];
    proptest::collection::vec(change, 1..40)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotFound,
    NameTaken,
    IdTaken,
    Attached,
    NotAttached,
    PositionTaken,
}

impl From<CatalogError> for Refusal {
    fn from(error: CatalogError) -> Refusal {
        match error {
            CatalogError::NotFound { .. } => Refusal::NotFound,
            CatalogError::NameTaken { .. } => Refusal::NameTaken,
            CatalogError::IdTaken { .. } => Refusal::IdTaken,
            CatalogError::VolumeAttached { .. } => Refusal::Attached,
            CatalogError::NotAttached { .. } => Refusal::NotAttached,
            CatalogError::PositionTaken { .. } => Refusal::PositionTaken,
            error => panic!("{error}"),
        }
    }
}

/// What the rules are, said once more and without a database.
#[derive(Default)]
struct Model {
    volumes: BTreeMap<usize, usize>,
    machines: Vec<usize>,
    held: BTreeMap<usize, (usize, u8)>,
}

impl Model {
    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::CreateVolume(v, n) => {
                // The name of number 0 is the ID of volume 0.
                let named_as_id = v == 0 && self.volumes.values().any(|name| *name == 0);
                refuse(
                    self.volumes.contains_key(&v) || named_as_id,
                    Refusal::IdTaken,
                )?;
                self.expect_free_name(v, n)?;
                self.volumes.insert(v, n);
            }
            Change::RenameVolume(v, n) => {
                refuse(!self.volumes.contains_key(&v), Refusal::NotFound)?;
                self.expect_free_name(v, n)?;
                self.volumes.insert(v, n);
            }
            Change::DeleteVolume(v) => {
                refuse(self.held.contains_key(&v), Refusal::Attached)?;
                self.volumes.remove(&v).ok_or(Refusal::NotFound)?;
            }
            Change::CreateMachine(m) => {
                refuse(self.machines.contains(&m), Refusal::IdTaken)?;
                self.machines.push(m);
            }
            Change::DeleteMachine(m) => {
                refuse(!self.machines.contains(&m), Refusal::NotFound)?;
                self.machines.retain(|machine| *machine != m);
                self.held.retain(|_, (holder, _)| *holder != m);
            }
            Change::Attach(m, v, p) => {
                self.expect_both(m, v)?;
                refuse(self.held.contains_key(&v), Refusal::Attached)?;
                let taken = self.held.values().any(|place| *place == (m, p));
                refuse(taken, Refusal::PositionTaken)?;
                self.held.insert(v, (m, p));
            }
            Change::Detach(m, v) => {
                self.expect_both(m, v)?;
                let holder = self.held.get(&v).map(|(holder, _)| *holder);
                refuse(holder != Some(m), Refusal::NotAttached)?;
                self.held.remove(&v);
            }
        }
        Ok(())
    }

    fn expect_free_name(&self, v: usize, n: usize) -> Result<(), Refusal> {
        let others = || self.volumes.iter().filter(|(id, _)| **id != v);
        let taken = others().any(|(_, name)| *name == n);
        let an_id = n == 0 && others().any(|(id, _)| *id == 0);
        refuse(taken || an_id, Refusal::NameTaken)
    }

    fn expect_both(&self, m: usize, v: usize) -> Result<(), Refusal> {
        let there = self.machines.contains(&m) && self.volumes.contains_key(&v);
        refuse(!there, Refusal::NotFound)
    }
}

fn refuse(refused: bool, why: Refusal) -> Result<(), Refusal> {
    if refused { Err(why) } else { Ok(()) }
}

struct World {
    home: Home,
    volumes: Vec<VolumeId>,
    machines: Vec<MachineId>,
    names: Vec<String>,
}

impl World {
    fn new() -> World {
        let volumes: Vec<VolumeId> = (0..VOLUMES).map(|_| VolumeId::random()).collect();
        let mut names: Vec<String> = (0..NAMES).map(|n| format!("name{n}")).collect();
        names[0] = volumes[0].to_string();
        World {
            home: Home::new(),
            volumes,
            machines: (0..MACHINES).map(|_| MachineId::random()).collect(),
            names,
        }
    }

    fn apply(&self, change: Change) -> Result<(), Refusal> {
        let write = |work: &dyn Fn(&Transaction<'_>) -> Result<(), CatalogError>| {
            self.home
                .catalogue
                .write(|tx| work(tx))
                .map_err(Refusal::from)
        };
        match change {
            Change::CreateVolume(v, n) => {
                let mut made = volume(&self.names[n]);
                made.id = self.volumes[v];
                write(&|tx| tx.insert_volume(&made))
            }
            Change::RenameVolume(v, n) => {
                let name = self.names[n].parse().unwrap();
                write(&|tx| tx.rename_volume(self.volumes[v], &name))
            }
            Change::DeleteVolume(v) => write(&|tx| tx.delete_volume(self.volumes[v])),
            Change::CreateMachine(m) => {
                let port = 2200 + u16::try_from(m).unwrap();
                let mut made = machine(&format!("m{m}"), port);
                made.id = self.machines[m];
                write(&|tx| tx.insert_machine(&made))
            }
            Change::DeleteMachine(m) => write(&|tx| tx.delete_machine(self.machines[m])),
            Change::Attach(m, v, p) => {
                write(&|tx| tx.attach(self.machines[m], self.volumes[v], p, Access::ReadWrite))
            }
            Change::Detach(m, v) => write(&|tx| tx.detach(self.machines[m], self.volumes[v])),
        }
    }

    fn expect(&self, model: &Model) {
        let (volumes, machines, held) = self
            .home
            .read(|s| Ok((s.all_volumes()?, s.all_machines()?, s.all_attachments()?)));
        let volumes: BTreeMap<_, _> = volumes
            .into_iter()
            .map(|volume| (volume.id, volume.name.to_string()))
            .collect();
        let expected: BTreeMap<_, _> = model
            .volumes
            .iter()
            .map(|(v, n)| (self.volumes[*v], self.names[*n].clone()))
            .collect();
        assert_eq!(volumes, expected);
        assert_eq!(machines.len(), model.machines.len());
        let held: BTreeMap<_, _> = held
            .into_iter()
            .map(|holding| holding.attachment)
            .map(|held| (held.volume, (held.machine, held.position)))
            .collect();
        let expected: BTreeMap<_, _> = model
            .held
            .iter()
            .map(|(v, (m, p))| (self.volumes[*v], (self.machines[*m], *p)))
            .collect();
        assert_eq!(held, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_has_the_outcome_that_the_rules_say(changes in changes()) {
        let (world, mut model) = (World::new(), Model::default());
        for change in changes {
            prop_assert_eq!(world.apply(change), model.apply(change), "{:?}", change);
            world.expect(&model);
        }
        prop_assert!(world.home.catalogue.check().unwrap().is_empty());
    }
}
