//! Images that stand in pools: made once, cloned by each deploy, and no user's volumes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use sistemo::images::NewImport;
use sistemo::machines::{Deploy, DeploySource, StartMode, Storage};
use sistemo::model::{Bytes, ImageName, PoolName};
use sistemo::{Engine, Error, Notice};
use sistemo_catalog::{Catalogue, ImageCopy, Intent};
use sistemo_host::program::Program;
use sistemo_model::{ImageId, Lifecycle, Timestamp, VolumeId};
use sistemo_testkit::filesystem::{LoopFilesystem, LoopKind};
use sistemo_testkit::{Requirement, met};

use crate::fixture::{House, MIB, holds, plan, pool_on, reference, reflinks, volume_in};

/// An engine with an image `disk` of 8 MB and a pool `fast` whose clones are instant.
struct Place {
    engine: Engine,
    house: House,
    fast: PoolName,
    filesystem: LoopFilesystem,
}

fn place() -> Option<Place> {
    let filesystem = reflinks()?;
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let place = Place {
        engine,
        house,
        fast,
        filesystem,
    };
    place.import("disk", b"image");
    Some(place)
}

impl Place {
    fn import(&self, name: &str, content: &[u8]) {
        self.try_import(name, content, None).unwrap();
    }

    fn try_import(
        &self,
        name: &str,
        content: &[u8],
        pool: Option<&str>,
    ) -> sistemo::Result<sistemo::images::ImageView> {
        let file = self.house.path("image.raw");
        let mut data = content.to_vec();
        data.resize(8 << 20, 0);
        data.extend(content);
        data.resize(9 << 20, 0);
        write_file(&file, &data);
        self.engine.import_image(NewImport {
            file,
            name: name.parse().unwrap(),
            kernel: None,
            initrd: None,
            format: None,
            pool: pool.map(|pool| pool.parse().unwrap()),
        })
    }

    fn plan(&self, machine: &str) -> Deploy {
        Deploy {
            pool: Some(self.fast.clone()),
            ..plan("disk", machine)
        }
    }

    fn copies(&self) -> Vec<ImageCopy> {
        copies(&self.house)
    }

    fn directory(&self) -> PathBuf {
        self.filesystem.path().join("fast")
    }

    /// The files in the pool, its marker left out.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".sistemo-pool").collect()
    }
}

fn write_file(path: &Path, content: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
}

fn copies(house: &House) -> Vec<ImageCopy> {
    let catalogue = Catalogue::open(&house.data_dir()).unwrap();
    catalogue.read(|session| session.image_copies()).unwrap()
}

#[test]
fn the_first_deploy_puts_the_image_there_and_each_clones_it() {
    let Some(place) = place() else { return };
    let engine = &place.engine;
    for machine in ["a", "b", "c"] {
        engine.deploy(&place.plan(machine)).unwrap();
        assert_eq!(place.copies().len(), 1);
        let root = engine
            .volume(&reference(&format!("{machine}-root")))
            .unwrap();
        assert_eq!(root.size_bytes, 16 * MIB, "larger than the image");
        assert!(holds(&root, 0, b"image") && holds(&root, 8 * MIB, b"image"));
        assert!(holds(&root, 9 * MIB, &[0; 64]));
    }
    let listed = engine.volumes().unwrap();
    assert_eq!(listed.len(), 3, "the copy is not listed");
    let view = engine.pool_view(&place.fast).unwrap();
    assert_eq!((view.volumes, view.images), (3, 1));
    let image = engine.image(&"disk".parse().unwrap()).unwrap();
    assert_eq!(image.pools, std::slice::from_ref(&place.fast));
    let checks = sistemo::doctor::examine(engine.settings());
    let odd = checks
        .iter()
        .find(|check| check.found.contains("catalogue"));
    assert_eq!(odd.map(|check| &check.found), None, "the doctor knows it");
}

#[test]
fn two_deploys_at_once_make_one_copy() {
    let Some(place) = place() else { return };
    std::thread::scope(|scope| {
        for machine in ["a", "b", "c", "d"] {
            let (house, new) = (&place.house, place.plan(machine));
            scope.spawn(move || house.engine().deploy(&new).unwrap());
        }
    });
    assert_eq!(place.copies().len(), 1);
    assert_eq!(place.files().len(), 2 * (4 + 1));
}

#[test]
fn a_pool_whose_clones_are_copies_holds_no_image() {
    let Some(place) = place() else { return };
    place.engine.deploy(&plan("disk", "m")).unwrap();
    assert!(place.copies().is_empty());
    let error = place.try_import("other", b"other", Some("default"));
    let error = error.unwrap_err();
    assert!(matches!(error, Error::PoolLacks { .. }), "{error}");
    assert!(place.engine.image(&"other".parse().unwrap()).is_err());
}

#[test]
fn an_image_can_be_put_into_a_pool_when_it_is_imported() {
    let Some(place) = place() else { return };
    let image = place.try_import("other", b"other", Some("fast")).unwrap();
    assert_eq!(image.pools, std::slice::from_ref(&place.fast));
    let new = Deploy {
        source: DeploySource::Image("other".parse().unwrap()),
        ..place.plan("m")
    };
    place.engine.deploy(&new).unwrap();
    assert_eq!(place.copies().len(), 1);
    let root = place.engine.volume(&reference("m-root")).unwrap();
    assert!(holds(&root, 0, b"other"));
}

#[test]
fn a_deleted_image_leaves_no_copy_and_roots_stay() {
    let Some(place) = place() else { return };
    let engine = &place.engine;
    let disk: ImageName = "disk".parse().unwrap();
    engine.deploy(&place.plan("m")).unwrap();
    engine.delete_image(&disk).unwrap();
    assert!(place.copies().is_empty());
    assert_eq!(place.files().len(), 2, "the root's");
    let root = engine.volume(&reference("m-root")).unwrap();
    assert!(holds(&root, 8 * MIB, b"image"));

    // An image of the same name is another one.
    place.import("disk", b"newer");
    engine.deploy(&place.plan("n")).unwrap();
    let root = engine.volume(&reference("n-root")).unwrap();
    assert!(holds(&root, 8 * MIB, b"newer"));
}

#[test]
fn a_copy_whose_pool_was_away_is_removed_when_it_is_back() {
    let Some(place) = place() else { return };
    let engine = &place.engine;
    engine.deploy(&place.plan("m")).unwrap();
    let mounted = sistemo_host::directory::Directory::open(place.filesystem.path()).unwrap();
    mounted.rename("fast", "away").unwrap();
    let away = place.house.engine();
    away.delete_image(&"disk".parse().unwrap()).unwrap();
    assert_eq!(place.copies().len(), 1);
    place.house.notices();
    drop(place.house.engine());
    assert_eq!(place.house.notices(), [], "nobody is bothered by it");

    mounted.rename("away", "fast").unwrap();
    place.import("other", b"other");
    engine.delete_image(&"other".parse().unwrap()).unwrap();
    assert!(place.copies().is_empty());
    assert_eq!(place.files().len(), 2);
}

#[test]
fn a_pool_that_holds_only_images_can_be_removed() {
    let Some(place) = place() else { return };
    let engine = &place.engine;
    engine.deploy(&place.plan("m")).unwrap();
    let error = engine.remove_pool(&place.fast).unwrap_err();
    assert!(matches!(error, Error::PoolNotEmpty { .. }), "{error}");
    assert_eq!(place.copies().len(), 1);
    engine
        .delete_machine(&reference("m"), Storage::DestroyRoot)
        .unwrap();
    engine.remove_pool(&place.fast).unwrap();
    assert!(place.copies().is_empty());
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn a_copy_that_somebody_has_removed_is_made_again() {
    let Some(place) = place() else { return };
    let engine = &place.engine;
    engine.deploy(&place.plan("a")).unwrap();
    let id = place.copies()[0].id.to_string();
    let pool = sistemo_host::directory::Directory::open(&place.directory()).unwrap();
    for file in place.files().iter().filter(|file| file.starts_with(&id)) {
        let _ = pool.remove(file).unwrap();
    }
    engine.deploy(&place.plan("b")).unwrap();
    let root = engine.volume(&reference("b-root")).unwrap();
    assert!(holds(&root, 0, b"image"));
    engine.deploy(&place.plan("c")).unwrap();
    let copies = place.copies();
    assert_eq!(copies.len(), 1);
    assert_ne!(copies[0].id.to_string(), id);
}

#[test]
fn a_copy_whose_making_or_removal_was_killed_is_gone_with_the_next_command() {
    let Some(place) = place() else { return };
    place.engine.deploy(&place.plan("m")).unwrap();
    let made = place.copies().remove(0);
    let catalogue = Catalogue::open(&place.house.data_dir()).unwrap();
    let half = ImageCopy {
        id: VolumeId::random(),
        image: ImageId::random(),
        lifecycle: Lifecycle::Creating,
        created: Timestamp::now(),
        ..made.clone()
    };
    catalogue
        .write(|session| {
            session.insert_image_copy(&half)?;
            session.begin(&Intent::CreateImageCopy { volume: half.id })?;
            session.set_image_copy_lifecycle(made.id, Lifecycle::Deleting)?;
            session.begin(&Intent::DeleteImageCopy { volume: made.id })
        })
        .unwrap();
    // The part of it that the driver had made.
    let draft = format!("{}.raw.new", half.id);
    write_file(&place.directory().join(draft), b"half");
    place.house.notices();
    drop(place.house.engine());
    let notices = place.house.notices();
    let recovered = |notice: &Notice| matches!(notice, Notice::Recovered { .. });
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(notices.iter().all(recovered), "{notices:?}");
    assert!(place.copies().is_empty());
    assert_eq!(place.files().len(), 2, "the root's: {:?}", place.files());
}

#[test]
fn a_deploy_without_room_for_the_image_leaves_nothing() {
    if !met(&[Requirement::Root, Requirement::Program("mkfs.xfs")]) {
        return;
    }
    let filesystem = LoopFilesystem::new(LoopKind::Xfs, Bytes::from_mib(300));
    let house = House::new();
    let engine = house.engine();
    let fast = pool_on(&engine, "fast", &filesystem);
    let filler = volume_in(&engine, &fast, "filler", 400);
    let file = house.path("image.raw");
    write_file(&file, &vec![7; 64 << 20]);
    engine
        .import_image(NewImport {
            file,
            name: "disk".parse().unwrap(),
            kernel: None,
            initrd: None,
            format: None,
            pool: None,
        })
        .unwrap();
    let free = engine.pool_view(&fast).unwrap().free_bytes.unwrap();
    let taken = format!("{}", free - 20 * MIB);
    let path = filler.path.unwrap();
    let fallocate = Program::find("fallocate").unwrap();
    fallocate.args(["-l", &taken]).arg(&path).run().unwrap();
    let new = Deploy {
        storage: None,
        pool: Some(fast),
        start: StartMode::Created,
        ..plan("disk", "m")
    };
    let error = engine.deploy(&new).unwrap_err();
    assert!(matches!(error, Error::Pool { .. }), "{error}");
    assert!(copies(&house).is_empty());
    assert!(engine.machines().unwrap().is_empty());
    let files = std::fs::read_dir(filesystem.path().join("fast")).unwrap();
    assert_eq!(files.count(), 3, "the filler's and the marker");
}
