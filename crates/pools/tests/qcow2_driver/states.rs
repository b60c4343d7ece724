//! What a kill or an accident leaves: each row of the driver's table.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};

use sistemo_host::Changed;
use sistemo_host::directory::Open;
use sistemo_model::{Access, Bytes, VolumeId};
use sistemo_pools::{Flaw, Found, Pool, PoolError};

use crate::scene::{MIB, Scene, scene};

impl Scene {
    fn touch(&self, name: &str) {
        self.directory.file(name, Open::CreateNew).unwrap();
    }

    fn remove_file(&self, name: &str) {
        assert_eq!(self.directory.remove(name).unwrap(), Changed::Yes);
    }

    fn recovers_by_removal(&self, id: VolumeId) {
        assert_eq!(self.pool.remove(id).unwrap(), Changed::Yes);
        assert_eq!(self.pool.remove(id).unwrap(), Changed::No);
        assert_eq!(self.files(), [""; 0]);
        assert_eq!(self.pool.list().unwrap(), []);
    }

    fn mode(&self, name: &str) -> u32 {
        let meta = self.directory.path_of(name).metadata().unwrap();
        meta.permissions().mode() & 0o777
    }
}

#[test]
fn a_volume_is_two_files_that_only_their_owner_reads_and_its_layers_are_read_only() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    let (first, second) = (format!("{id}.1.qcow2"), format!("{id}.2.qcow2"));
    assert_eq!(scene.files(), [first.clone(), format!("{id}.json")]);
    scene.write(id, b"data", 0);
    scene.snapshot(id, "now");
    assert_eq!(
        scene.files(),
        [
            first.clone(),
            second.clone(),
            format!("{id}.json"),
            format!("{id}@now.qcow2")
        ]
    );
    assert_eq!(scene.mode(&first), 0o400);
    assert_eq!(scene.mode(&second), 0o600);
    assert_eq!(scene.mode(&format!("{id}.json")), 0o600);
}

#[test]
fn what_is_not_published_is_a_draft() {
    for suffix in [
        ".1.qcow2.new",
        ".json.new",
        ".json.new.part",
        ".json.part",
        "@s.qcow2.new",
    ] {
        let scene = scene();
        let id = VolumeId::random();
        scene.touch(&format!("{id}{suffix}"));
        scene.shows(id, &Found::Draft { id });
        scene.recovers_by_removal(id);
    }
}

#[test]
fn a_commit_that_was_killed_before_its_last_rename_is_a_draft() {
    let scene = scene();
    let made = scene.create(MIB);
    let (id, json) = (made.id, format!("{}.json", made.id));
    scene
        .directory
        .rename(&json, &format!("{json}.new"))
        .unwrap();
    scene.shows(id, &Found::Draft { id });
    let error = scene.pool.draft(&made).unwrap_err();
    assert!(matches!(error, PoolError::DraftThere { .. }), "{error}");
    assert!(matches!(
        scene.pool.facts(id),
        Err(PoolError::NoSuchVolume { .. })
    ));
    scene.recovers_by_removal(id);
}

#[test]
fn a_removal_that_was_killed_is_an_orphan_and_is_completed() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"data", 0);
    scene.snapshot(id, "s");
    scene
        .directory
        .rename(&format!("{id}.json"), &format!("{id}.json.gone"))
        .unwrap();
    let description = Some(made);
    scene.shows(id, &Found::Orphan { id, description });
    scene.recovers_by_removal(id);
}

#[test]
fn a_killed_removal_of_what_has_clones_keeps_their_layers() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"data", 0);
    let clone = scene.clone_of(id);
    scene
        .directory
        .rename(&format!("{id}.json"), &format!("{id}.json.gone"))
        .unwrap();
    assert_eq!(scene.pool.remove(id).unwrap(), Changed::Yes);
    assert_eq!(scene.pool.remove(id).unwrap(), Changed::No);
    assert_eq!(scene.pool.find(id).unwrap(), None);
    assert_eq!(scene.read(clone.id, 0, 4), b"data");
    assert!(scene.files().contains(&format!("{id}.layers")));
    scene.recovers_by_removal(clone.id);
}

#[test]
fn making_a_volume_again_completes_its_removal_first() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"data", 0);
    scene
        .directory
        .rename(&format!("{id}.json"), &format!("{id}.json.gone"))
        .unwrap();
    scene.pool.draft(&made).unwrap().commit().unwrap();
    assert_eq!(scene.read(id, 0, 4), [0; 4]);
    assert_eq!(
        scene.files(),
        [format!("{id}.1.qcow2"), format!("{id}.json")]
    );
}

#[test]
fn a_layer_that_a_kill_left_goes_with_the_next_removal() {
    let scene = scene();
    let made = scene.create(MIB);
    scene.write(made.id, b"data", 0);
    let clone = scene.clone_of(made.id);
    let _ = scene.pool.remove(made.id).unwrap();
    // The clone's removal was killed when its own data was gone.
    let id = clone.id;
    scene
        .directory
        .rename(&format!("{id}.json"), &format!("{id}.json.gone"))
        .unwrap();
    scene.remove_file(&format!("{id}.1.qcow2"));
    assert_eq!(scene.files().len(), 3);
    scene.recovers_by_removal(id);
}

#[test]
fn without_its_description_it_is_undescribed_until_it_is_described() {
    let scene = scene();
    let made = scene.create(MIB);
    let (id, json) = (made.id, format!("{}.json", made.id));
    let facts = scene.pool.facts(id).unwrap();
    scene.directory.replace(&json, b"{").unwrap();
    let undescribed = Found::Undescribed {
        id,
        facts: facts.clone(),
    };
    scene.shows(id, &undescribed);
    assert_eq!(
        scene.pool.verify(id, made.size).unwrap(),
        [Flaw::BadDescription]
    );
    scene.remove_file(&json);
    scene.shows(id, &undescribed);
    assert_eq!(
        scene.pool.verify(id, made.size).unwrap(),
        [Flaw::Undescribed]
    );
    assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
    let description = made;
    scene.shows(id, &Found::Volume { description, facts });
}

#[test]
fn a_description_without_data_is_an_orphan() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.remove_file(&format!("{id}.1.qcow2"));
    assert_eq!(scene.pool.verify(id, made.size).unwrap(), [Flaw::Missing]);
    let description = Some(made);
    scene.shows(id, &Found::Orphan { id, description });
    scene.recovers_by_removal(id);
}

#[test]
fn a_layer_is_never_taken_for_a_volume_that_lost_its_data() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"old", 0);
    scene.snapshot(id, "s");
    scene.write(id, b"new", 0);
    scene.remove_file(&format!("{id}.2.qcow2"));
    let flaw = Flaw::Missing;
    scene.shows(id, &Found::Damaged { id, flaw });
    assert_eq!(scene.pool.verify(id, made.size).unwrap(), [Flaw::Missing]);
    for error in [
        scene.pool.open(id, Access::ReadWrite).unwrap_err(),
        scene.pool.content(id, Access::ReadWrite).unwrap_err(),
        scene.pool.grow(id, Bytes::from_mib(2)).unwrap_err(),
    ] {
        assert!(matches!(error, PoolError::Damaged { .. }), "{error}");
    }
    // What can be saved is still there.
    assert_eq!(scene.read_snapshot(id, "s", 0, 3), b"old");
    scene.recovers_by_removal(id);
}

#[test]
fn a_layer_that_only_a_snapshot_needs_is_examined_too() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    for text in ["a", "b"] {
        scene.write(id, text.repeat(100).as_bytes(), 0);
        scene.snapshot(id, text);
    }
    let layer = scene.directory.path_of(&format!("{id}.2.qcow2"));
    scene.revert(id, "a");
    let examine = || {
        let examined = scene.pool.examine(id, made.size, &mut |_, _| {});
        examined.unwrap()
    };
    assert_eq!(examine(), []);
    let file = std::fs::File::options().write(true).open(&layer).unwrap();
    file.set_len(file.metadata().unwrap().len() - 65536)
        .unwrap();
    // Nothing of the volume as it is lies in it.
    scene.is_sound(id);
    let flaws = examine();
    let [Flaw::Unreadable { reason }] = flaws.as_slice() else {
        panic!("{flaws:?}");
    };
    let file = layer.file_name().unwrap().to_str().unwrap();
    assert!(reason.contains(file), "{reason}");
}

#[test]
fn a_freezing_that_was_killed_at_each_step_changes_nothing() {
    for step in ["mode", "new", "overlay"] {
        let scene = scene();
        let made = scene.create(MIB);
        let id = made.id;
        scene.write(id, b"data", 0);
        let first = scene.top(id);
        match step {
            "mode" => std::fs::set_permissions(&first, Permissions::from_mode(0o400)).unwrap(),
            "new" => {
                std::fs::set_permissions(&first, Permissions::from_mode(0o400)).unwrap();
                scene.touch(&format!("{id}.2.qcow2.new"));
                scene.touch(&format!("{id}@s.qcow2.new"));
            }
            _ => {
                scene.snapshot(id, "s");
                scene.remove_file(&format!("{id}@s.qcow2"));
                scene.touch(&format!("{id}@s.qcow2.new"));
            }
        }
        let found = scene.pool.list().unwrap();
        assert!(matches!(&found[..], [Found::Volume { .. }]), "{found:?}");
        scene.is_sound(id);
        assert_eq!(scene.read(id, 0, 4), b"data");
        scene.write(id, b"more", 4);
        scene.snapshot(id, "s");
        scene.write(id, b"else", 0);
        assert_eq!(scene.read_snapshot(id, "s", 0, 8), b"datamore");
        assert!(!scene.files().iter().any(|name| name.contains(".new")));
        scene.recovers_by_removal(id);
    }
}

#[test]
fn a_revert_that_was_killed_is_completed_by_reverting_again() {
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"one", 0);
    scene.snapshot(id, "s");
    let large = Bytes::from_mib(3);
    let _ = scene.pool.grow(id, large).unwrap();
    let described = scene.pool.description(id).unwrap();
    scene.revert(id, "s");
    // Killed when the new data was there and the description not yet.
    assert_eq!(scene.pool.describe(&described).unwrap(), Changed::Yes);
    let flaw = Flaw::DescribedSize {
        recorded: made.size,
        described: large,
    };
    assert_eq!(scene.pool.verify(id, made.size).unwrap(), [flaw]);
    scene.revert(id, "s");
    scene.is_sound(id);
    assert_eq!(scene.read(id, 0, 3), b"one");
}

#[test]
fn a_grow_that_was_killed_is_completed_by_growing_again() {
    let scene = scene();
    let made = scene.create(MIB);
    let to = Bytes::from_mib(2);
    let _ = scene.pool.grow(made.id, to).unwrap();
    assert_eq!(scene.pool.describe(&made).unwrap(), Changed::Yes);
    let half = Flaw::DescribedSize {
        recorded: to,
        described: made.size,
    };
    assert_eq!(scene.pool.verify(made.id, to).unwrap(), [half]);
    assert_eq!(scene.pool.grow(made.id, to).unwrap(), Changed::Yes);
    scene.is_sound(made.id);
}

#[test]
fn a_backing_file_that_is_none_of_ours_is_never_opened() {
    use std::os::unix::fs::FileExt;
    let scene = scene();
    let made = scene.create(MIB);
    let id = made.id;
    scene.write(id, b"data", 0);
    let clone = scene.clone_of(id);
    let top = scene.top(clone.id);
    let header = std::fs::read(&top).unwrap();
    let name = format!("{id}.1.qcow2");
    let at = header
        .windows(name.len())
        .position(|window| window == name.as_bytes())
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&top).unwrap();
    let own = format!("{}.1.qcow2", clone.id);
    for foreign in [
        "/etc/passwd",
        "../x",
        "json:{}",
        "nbd://host/",
        own.as_str(),
        "nothing.qcow2",
    ] {
        let mut padded = foreign.as_bytes().to_vec();
        padded.resize(name.len().max(foreign.len()), b' ');
        file.write_all_at(&padded, at as u64).unwrap();
        let length = u32::try_from(foreign.len()).unwrap();
        file.write_all_at(&length.to_be_bytes(), 16).unwrap();
        let flaws = scene.pool.verify(clone.id, clone.size).unwrap();
        assert!(
            matches!(&flaws[..], [Flaw::Unreadable { .. }]),
            "{foreign}: {flaws:?}"
        );
        assert!(scene.pool.content(clone.id, Access::ReadOnly).is_err());
        // Nothing is removed while it is not known what lies over what.
        let _ = scene.pool.list().unwrap();
    }
    let link = scene.directory.path_of(&format!("{id}.1.qcow2"));
    std::fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    file.write_all_at(name.as_bytes(), at as u64).unwrap();
    file.write_all_at(&u32::try_from(name.len()).unwrap().to_be_bytes(), 16)
        .unwrap();
    assert!(scene.pool.content(clone.id, Access::ReadOnly).is_err());
}

#[test]
fn while_a_file_cannot_be_read_no_layer_is_removed_but_data_still_is() {
    let scene = scene();
    let made = scene.create(MIB);
    scene.write(made.id, b"data", 0);
    let clone = scene.clone_of(made.id);
    let other = scene.create(MIB);
    std::fs::OpenOptions::new()
        .write(true)
        .open(scene.top(other.id))
        .unwrap()
        .set_len(0)
        .unwrap();
    let _ = scene.pool.remove(made.id).unwrap();
    let _ = scene.pool.remove(clone.id).unwrap();
    assert!(scene.files().contains(&format!("{}.1.qcow2", made.id)));
    assert!(!scene.files().contains(&format!("{}.1.qcow2", clone.id)));
    scene.recovers_by_removal(other.id);
}

#[test]
fn files_of_others_are_strays_and_stay() {
    let scene = scene();
    let made = scene.create(MIB);
    scene.touch("notes.txt");
    scene.touch(&format!("{}.ext4", made.id));
    let strays = scene
        .pool
        .list()
        .unwrap()
        .into_iter()
        .filter(|found| matches!(found, Found::Stray { .. }));
    assert_eq!(strays.count(), 2);
    let _ = scene.pool.remove(made.id).unwrap();
    assert_eq!(scene.files().len(), 2);
}
