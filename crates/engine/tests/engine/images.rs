//! Images as the engine keeps them: a volume never loses the kernel it boots.

use sistemo::Error;
use sistemo_host::directory::Directory;
use sistemo_testkit::{Action, Requirement, met};

use crate::fixture::{House, MIB, plan};

#[test]
fn an_image_that_does_not_exist_is_refused_by_name() {
    let house = House::new();
    let engine = house.engine();
    for error in [
        engine.image(&"none".parse().unwrap()).unwrap_err(),
        engine.delete_image(&"none".parse().unwrap()).unwrap_err(),
        engine.deploy(&plan("none", "m")).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "image none does not exist");
    }
}

#[test]
fn a_taken_image_name_is_refused() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    let import = sistemo::images::NewImport {
        file: house.path("disk.img"),
        name: "disk".parse().unwrap(),
        kernel: None,
        initrd: None,
        format: None,
        pool: None,
    };
    let error = engine.import_image(import).unwrap_err();
    assert!(matches!(error, Error::NameTaken { .. }), "{error}");
}

#[test]
fn deleting_an_image_keeps_the_kernel_that_a_volume_boots() {
    if !met(&[Requirement::TinyGuest]) {
        return;
    }
    let house = House::new();
    let engine = house.engine();
    house.import_tiny(&engine, &[Action::PowerOff]);
    let kernels = || {
        std::fs::read_dir(house.data_dir().join("kernels"))
            .unwrap()
            .count()
    };
    let tiny = "tiny".parse().unwrap();
    engine.deploy(&plan("tiny", "m")).unwrap();
    engine.delete_image(&tiny).unwrap();
    assert_eq!(kernels(), 2, "the kernel and the initrd stay");

    engine
        .delete_machine(&"m".into(), sistemo::machines::Storage::RemoveRoot)
        .unwrap();
    house.import_tiny(&engine, &[Action::PowerOff]);
    engine.delete_image(&tiny).unwrap();
    assert_eq!(kernels(), 2, "what is in the trash may boot again");

    engine.destroy_trashed(&"m-root".into()).unwrap();
    house.import_tiny(&engine, &[Action::PowerOff]);
    engine.delete_image(&tiny).unwrap();
    assert_eq!(kernels(), 0, "nothing boots them any more");
}

#[test]
fn a_damaged_image_is_told_of_and_can_be_deleted() {
    let house = House::new();
    let engine = house.engine();
    house.import_disk(&engine, MIB);
    let images = Directory::open(&house.data_dir().join("images")).unwrap();
    images.replace("broken.json", b"").unwrap();
    house.notices();
    let names: Vec<_> = engine
        .images()
        .unwrap()
        .into_iter()
        .map(|image| image.name)
        .collect();
    assert_eq!(names, ["disk".parse().unwrap()]);
    let notices = house.notices();
    assert!(
        matches!(notices.as_slice(), [sistemo::Notice::DamagedImage { .. }]),
        "{notices:?}"
    );
    assert!(
        engine
            .delete_image(&"broken".parse().unwrap())
            .unwrap()
            .is_none()
    );
    assert!(engine.image(&"broken".parse().unwrap()).is_err());
    assert_eq!(engine.images().unwrap().len(), 1);
}
