//! Random operations against a model in memory, whole contents compared.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sistemo_host::Changed;
use sistemo_host::sparse::Extent;
use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Origin, Pool};

use crate::scene::{Scene, description, name, scene};

const SIZE: u64 = 384 << 10;

#[derive(Clone, Debug)]
enum Step {
    Write {
        volume: usize,
        at: u64,
        length: u64,
        byte: u8,
    },
    Hole {
        volume: usize,
        at: u64,
        length: u64,
    },
    Grow {
        volume: usize,
        by: u64,
    },
    Snapshot {
        volume: usize,
        name: u8,
    },
    Delete {
        volume: usize,
        name: u8,
    },
    Revert {
        volume: usize,
        name: u8,
    },
    Clone {
        volume: usize,
        snapshot: Option<u8>,
        more: u64,
    },
    Remove {
        volume: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let volume = 0_usize..6;
    let part = (0_u64..SIZE * 2, 1_u64..200_000);
    let name = 0_u8..4;
    prop_oneof![
        4 => (volume.clone(), part.clone(), 1_u8..).prop_map(|(volume, (at, length), byte)| {
            Step::Write { volume, at, length, byte }
        }),
        2 => (volume.clone(), part).prop_map(|(volume, (at, length))| Step::Hole { volume, at, length }),
        1 => (volume.clone(), 0_u64..400).prop_map(|(volume, by)| Step::Grow { volume, by: by * 512 }),
        3 => (volume.clone(), name.clone()).prop_map(|(volume, name)| Step::Snapshot { volume, name }),
        2 => (volume.clone(), name.clone()).prop_map(|(volume, name)| Step::Delete { volume, name }),
        2 => (volume.clone(), name.clone()).prop_map(|(volume, name)| Step::Revert { volume, name }),
        2 => (volume.clone(), proptest::option::of(name), 0_u64..200).prop_map(
            |(volume, snapshot, more)| Step::Clone { volume, snapshot, more: more * 512 }
        ),
        1 => volume.prop_map(|volume| Step::Remove { volume }),
    ]
}

#[derive(Clone, Debug)]
struct Model {
    id: VolumeId,
    content: Vec<u8>,
    snapshots: BTreeMap<u8, Vec<u8>>,
}

fn cut(model: &Model, at: u64, length: u64) -> Option<std::ops::Range<usize>> {
    let size = model.content.len() as u64;
    (at < size).then(|| {
        let end = (at + length).min(size);
        usize::try_from(at).unwrap()..usize::try_from(end).unwrap()
    })
}

fn apply(scene: &Scene, models: &mut Vec<Model>, step: &Step) {
    let (Step::Write { volume, .. }
    | Step::Hole { volume, .. }
    | Step::Grow { volume, .. }
    | Step::Snapshot { volume, .. }
    | Step::Delete { volume, .. }
    | Step::Revert { volume, .. }
    | Step::Clone { volume, .. }
    | Step::Remove { volume }) = *step;
    let count = models.len();
    if count == 0 {
        return;
    }
    let index = volume % count;
    let model = &mut models[index];
    let id = model.id;
    match *step {
        Step::Write {
            at, length, byte, ..
        } => {
            if let Some(range) = cut(model, at, length) {
                scene.write(id, &vec![byte; range.len()], at);
                model.content[range].fill(byte);
            }
        }
        Step::Hole { at, length, .. } => {
            if let Some(range) = cut(model, at, length) {
                let mut content = scene.pool.content(id, Access::ReadWrite).unwrap();
                let length = range.len() as u64;
                content.make_hole(Extent { offset: at, length }).unwrap();
                model.content[range].fill(0);
            }
        }
        Step::Grow { by, .. } => {
            let to = model.content.len() as u64 + by;
            let _ = scene.pool.grow(id, Bytes::new(to)).unwrap();
            model.content.resize(usize::try_from(to).unwrap(), 0);
        }
        Step::Snapshot { name: which, .. } => {
            if !model.snapshots.contains_key(&which) {
                scene.snapshot(id, &format!("s{which}"));
                model.snapshots.insert(which, model.content.clone());
            }
        }
        Step::Delete { name: which, .. } => {
            let there = model.snapshots.remove(&which).is_some();
            let changed = if there { Changed::Yes } else { Changed::No };
            assert_eq!(scene.delete(id, &format!("s{which}")), changed);
        }
        Step::Revert { name: which, .. } => {
            if let Some(old) = model.snapshots.get(&which) {
                scene.revert(id, &format!("s{which}"));
                model.content.clone_from(old);
            }
        }
        Step::Clone { snapshot, more, .. } => {
            let content = match snapshot {
                Some(which) => model.snapshots.get(&which).cloned(),
                None => Some(model.content.clone()),
            };
            if let (Some(mut content), true) = (content, count < 6) {
                let snapshot = snapshot.map(|which| name(&format!("s{which}")));
                let origin = Origin {
                    volume: id,
                    snapshot: snapshot.as_ref(),
                };
                let size = content.len() as u64 + more;
                let clone = scene.clone(origin, size);
                content.resize(usize::try_from(size).unwrap(), 0);
                let snapshots = BTreeMap::new();
                models.push(Model {
                    id: clone.id,
                    content,
                    snapshots,
                });
            }
        }
        Step::Remove { .. } => {
            assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
            models.remove(index);
        }
    }
}

fn check(scene: &Scene, models: &[Model]) {
    assert_eq!(scene.pool.list().unwrap().len(), models.len());
    for model in models {
        scene.is_sound(model.id);
        let there = scene.read(model.id, 0, model.content.len());
        assert!(there == model.content, "a volume differs");
        assert_eq!(
            scene.names_of_snapshots(model.id).len(),
            model.snapshots.len()
        );
        for (which, content) in &model.snapshots {
            let there = scene.read_snapshot(model.id, &format!("s{which}"), 0, content.len());
            assert!(there == *content, "snapshot {which} differs");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_done_every_volume_and_snapshot_holds_what_it_should(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let scene = scene();
        let made = description(Bytes::new(SIZE));
        scene.pool.draft(&made).unwrap().commit().unwrap();
        let size = usize::try_from(SIZE).unwrap();
        let mut models = vec![Model { id: made.id, content: vec![0; size], snapshots: BTreeMap::new() }];
        for step in &steps {
            apply(&scene, &mut models, step);
            check(&scene, &models);
        }
        for model in models.drain(..) {
            assert_eq!(scene.pool.remove(model.id).unwrap(), Changed::Yes);
        }
        // No layer outlives its last user.
        assert_eq!(scene.files(), [""; 0]);
    }
}
