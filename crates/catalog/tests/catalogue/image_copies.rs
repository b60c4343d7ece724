use sistemo_catalog::{CatalogError, ImageCopy};
use sistemo_model::{Bytes, ImageId, Lifecycle, PoolName, Timestamp, VolumeId};

use crate::fixture::Home;

fn copy(pool: &str, image: ImageId) -> ImageCopy {
    ImageCopy {
        id: VolumeId::random(),
        image,
        name: "debian".parse().unwrap(),
        pool: pool.parse().unwrap(),
        size: Bytes::from_mib(512),
        lifecycle: Lifecycle::Creating,
        created: Timestamp::now(),
    }
}

#[test]
fn a_copy_is_found_by_pool_and_image_and_is_no_volume() {
    let home = Home::new();
    let image = ImageId::random();
    let (fast, slow) = (copy("fast", image), copy("slow", image));
    home.write(|tx| {
        tx.insert_image_copy(&slow)?;
        tx.insert_image_copy(&fast)
    });
    let pool: PoolName = "fast".parse().unwrap();
    assert_eq!(
        home.read(|s| s.image_copy_in(&pool, image)),
        Some(fast.clone())
    );
    assert_eq!(home.read(|s| s.image_copy(slow.id)), Some(slow.clone()));
    assert_eq!(
        home.read(|s| s.image_copies()),
        [fast.clone(), slow.clone()]
    );
    assert!(home.read(|s| s.all_volumes()).is_empty());

    home.write(|tx| tx.set_image_copy_lifecycle(fast.id, Lifecycle::Ready));
    let ready = home.read(|s| s.image_copy(fast.id)).unwrap();
    assert_eq!(ready.lifecycle, Lifecycle::Ready);
    home.write(|tx| tx.delete_image_copy(fast.id));
    home.write(|tx| tx.delete_image_copy(fast.id));
    assert_eq!(home.read(|s| s.image_copies()), [slow]);
}

#[test]
fn a_pool_has_one_copy_of_an_image() {
    let home = Home::new();
    let image = ImageId::random();
    home.write(|tx| tx.insert_image_copy(&copy("fast", image)));
    let refused = home.refused(|tx| tx.insert_image_copy(&copy("fast", image)));
    assert!(
        matches!(refused, CatalogError::Database { .. }),
        "{refused}"
    );
    home.write(|tx| tx.insert_image_copy(&copy("fast", ImageId::random())));
}

#[test]
fn a_copy_does_not_come_back_from_its_removal() {
    let home = Home::new();
    let going = copy("fast", ImageId::random());
    home.write(|tx| tx.insert_image_copy(&going));
    home.write(|tx| tx.set_image_copy_lifecycle(going.id, Lifecycle::Deleting));
    let refused = home.refused(|tx| tx.set_image_copy_lifecycle(going.id, Lifecycle::Ready));
    assert!(
        matches!(refused, CatalogError::IllegalLifecycle { .. }),
        "{refused}"
    );
}
