//! `sistemo image …`, as far as it goes without building one.

use crate::environment::Environment;

#[test]
fn the_life_of_an_imported_image() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    let scene = environment.scene(&[
        "image list",
        "image import disk.raw --name mine",
        "image import disk.raw --name mine",
        "image ls",
        "machine deploy mine --storage 16M --no-start -q",
        "image delete mine",
        "image delete mine mine -y",
        "image rm mine -y",
        "image show mine",
    ]);
    environment.assert_snapshot("the_life_of_an_imported_image", &scene);
}

#[test]
fn a_refused_import_leaves_nothing_behind() {
    let environment = Environment::new();
    environment.disk("disk.raw", 16);
    environment.disk("disk", 16);
    for (status, words, named) in [
        (2, "disk.raw", "--name <NAME>"),
        (2, "disk.raw --name a/b", "image name `a/b` contains `/`"),
        (2, "disk.raw --name mine --initrd x", "--kernel <FILE>"),
        (2, "disk.raw --name mine --format vpc", "'vpc'"),
        (1, "nope.raw --name mine", "nope.raw"),
        (1, "disk --name mine", "disk"),
        (1, "disk.raw --name mine --kernel nope", "nope"),
    ] {
        environment.refused(status, &format!("image import {words}"), named);
    }
    environment.refused(2, "image build windows", "'windows'");
    assert_eq!(
        environment.ok("image list -o json").json(),
        serde_json::json!([])
    );
}
