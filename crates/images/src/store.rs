//! The images there are: a description and a content each.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sistemo_host::Changed;
use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_host::lock::{Lock, LockError, PATIENCE};
use sistemo_host::{program::ProgramError, sparse};
use sistemo_model::{Boot, Bytes, Image, ImageId, ImageName, ImageSource, Timestamp};

use crate::debian::Namespace;
use crate::disk_file::whole_sectors;
use crate::error::{Error, Result};

/// The version of the description's format that this program writes, and the newest it reads.
const VERSION: u32 = 1;
const DESCRIPTION: &str = ".json";
const CONTENT: &str = ".raw";
const BUILD: &str = ".build";
/// A description is a few hundred bytes; included packages may make it a few thousand.
const DESCRIPTION_LIMIT: u64 = 1 << 20;

/// The images of a data directory and the kernels they boot.
#[derive(Debug)]
pub struct Images {
    pub(crate) store: Directory,
    pub(crate) kernels: Directory,
    locks: Directory,
}

/// An image and its content, which stays readable whatever becomes of the image.
#[derive(Debug)]
pub struct OpenImage {
    /// What it is.
    pub image: Image,
    /// Its content, raw and sparse, open for reading.
    pub content: File,
}

/// An image that does not exist yet. Dropped, it leaves nothing; killed, it leaves content that no
/// description names, which the next import or build removes.
#[derive(Debug)]
#[must_use]
pub struct ImageDraft<'a> {
    images: &'a Images,
    lock: Lock,
    name: ImageName,
    id: ImageId,
    content: File,
}

impl ImageDraft<'_> {
    /// What is to be its content, an empty raw file to begin with.
    #[must_use]
    pub fn content(&self) -> &File {
        &self.content
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// The directory that its content is in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.images.store.path()
    }

    /// What a program must inherit that writes the content.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Makes the image exist, durably, with what its content is now, rounded up to whole sectors.
    ///
    /// # Errors
    /// Where it cannot be written. Nothing is left.
    pub fn publish(self, boot: Option<Boot>, source: ImageSource) -> Result<Image> {
        let path = || self.images.content_path(&self.name, self.id);
        let length = self
            .content
            .metadata()
            .map_err(|error| FileError::new("examine", path(), error))?
            .len();
        let size = whole_sectors(length);
        self.content
            .set_len(size.get())
            .map_err(|error| FileError::new("grow", path(), error))?;
        let image = Image {
            id: self.id,
            name: self.name.clone(),
            size,
            boot,
            source,
            created: Timestamp::now(),
        };
        self.images.publish(&self.lock, &image)?;
        Ok(image)
    }
}

impl Drop for ImageDraft<'_> {
    fn drop(&mut self) {
        // Of an image that was published nothing is left over; else, what stays is removed next
        // time.
        let _ = self.images.remove_leftovers(&self.lock, &self.name);
    }
}

/// The images there are, and those that nothing can be told about.
#[derive(Debug, Default)]
#[must_use]
pub struct Listing {
    /// The images whose descriptions can be read, sorted by name.
    pub images: Vec<Image>,
    /// The others, sorted by name: any of them may boot any kernel.
    pub damaged: Vec<DamagedImage>,
}

/// An image whose description cannot be read; [`Images::delete`] gets rid of it.
#[derive(Debug)]
pub struct DamagedImage {
    /// Its name, as its description's file tells it.
    pub name: ImageName,
    /// Why not: [`Error::Damaged`], [`Error::Newer`] or [`Error::File`].
    pub error: Error,
}

#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    #[serde(flatten)]
    image: Image,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Images {
    /// Opens the images of a data directory, which must exist; their own directories are made
    /// with mode 0700 where they are missing.
    ///
    /// # Errors
    /// Where the data directory is missing or not writable.
    pub fn open(data_dir: &Path) -> Result<Images> {
        // Programs are given these paths while they work in other directories.
        let data_dir = std::path::absolute(data_dir)
            .map_err(|error| FileError::new("find", data_dir, error))?;
        let directory = |name: &str| Directory::create(&data_dir.join(name)).map(|(made, _)| made);
        Ok(Images {
            store: directory("images")?,
            kernels: directory("kernels")?,
            locks: directory("locks")?,
        })
    }

    /// All images, those whose descriptions cannot be read apart from the others.
    ///
    /// # Errors
    /// Where the directory of images cannot be read.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for file in self.store.files()? {
            let name = file
                .strip_suffix(DESCRIPTION)
                .and_then(|name| name.parse().ok());
            let Some(name) = name else { continue };
            match self.find(&name) {
                Ok(image) => listing.images.push(image),
                // It was deleted since the directory was read.
                Err(Error::NotFound { .. }) => {}
                Err(error) => listing.damaged.push(DamagedImage { name, error }),
            }
        }
        listing
            .images
            .sort_by(|one, other| one.name.cmp(&other.name));
        listing
            .damaged
            .sort_by(|one, other| one.name.cmp(&other.name));
        Ok(listing)
    }

    /// The image of a name.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] or [`Error::Newer`] where its description cannot
    /// be read.
    pub fn find(&self, name: &ImageName) -> Result<Image> {
        let file = description_of(name);
        let content = match self.store.read(&file, DESCRIPTION_LIMIT) {
            Err(error) if error.is_not_found() => {
                return Err(Error::NotFound { name: name.clone() });
            }
            other => other?,
        };
        let damaged = |source| Error::Damaged {
            name: name.clone(),
            path: self.store.path_of(&file),
            source,
        };
        let Version { version } =
            serde_json::from_slice(&content).map_err(|error| damaged(Some(error)))?;
        if version > VERSION {
            return Err(Error::Newer {
                name: name.clone(),
                version,
            });
        }
        let Description { image, .. } =
            serde_json::from_slice(&content).map_err(|error| damaged(Some(error)))?;
        if image.name == *name {
            Ok(image)
        } else {
            Err(damaged(None))
        }
    }

    /// Finds an image and opens its content, also while it is being replaced.
    ///
    /// # Errors
    /// As [`Images::find`], and where the content cannot be opened.
    pub fn open_image(&self, name: &ImageName) -> Result<OpenImage> {
        let mut last = None;
        loop {
            let image = self.find(name)?;
            match self.store.file(&content_of(name, image.id), Open::Read) {
                Ok(content) => return Ok(OpenImage { image, content }),
                // Replaced between the two steps: the new description names the new content.
                Err(error) if error.is_not_found() && last != Some(image.id) => {
                    last = Some(image.id);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where an image's content is: a raw sparse file. [`Images::open_image`] is the way to read
    /// it while others may replace or delete the image.
    #[must_use]
    pub fn content(&self, image: &Image) -> PathBuf {
        self.content_path(&image.name, image.id)
    }

    /// The bytes that an image's content takes on disk.
    ///
    /// # Errors
    /// Where the content is missing.
    pub fn used_bytes(&self, image: &Image) -> Result<Bytes> {
        let name = content_of(&image.name, image.id);
        let file = self.store.file(&name, Open::Read)?;
        let used = sparse::used_bytes(&file)
            .map_err(|error| FileError::new("examine", self.store.path_of(&name), error))?;
        Ok(Bytes::new(used))
    }

    /// Deletes an image, also one whose description cannot be read. Volumes made from it are not touched, and its
    /// kernel stays until [`Images::discard_unused_kernels`].
    ///
    /// A crash in the middle leaves the image there, or gone with content that the next build or
    /// import removes.
    ///
    /// # Errors
    /// [`Error::Lock`] where it is being built; where a file cannot be removed.
    pub fn delete(&self, name: &ImageName) -> Result<Changed> {
        let _lock = self.lock(name, PATIENCE)?;
        let changed = self.store.remove(&description_of(name))?;
        self.remove_leftovers_of(name, None)?;
        Ok(changed)
    }

    pub(crate) fn lock_path(&self, file: &str) -> PathBuf {
        self.locks.path_of(file)
    }

    pub(crate) fn lock(&self, name: &ImageName, patience: Duration) -> Result<Lock, LockError> {
        Lock::acquire(
            &self.image_lock_path(name),
            &format!("image {name}"),
            patience,
        )
    }

    fn image_lock_path(&self, name: &ImageName) -> PathBuf {
        self.lock_path(&format!("image-{name}.lock"))
    }

    /// Begins an image.
    ///
    /// # Errors
    /// [`Error::NameTaken`], and where its content cannot be made.
    pub fn draft(&self, name: &ImageName) -> Result<ImageDraft<'_>> {
        let lock = self.lock(name, PATIENCE)?;
        match self.find(name) {
            Err(Error::NotFound { .. }) => {}
            Ok(_) | Err(Error::Damaged { .. } | Error::Newer { .. }) => {
                return Err(Error::NameTaken { name: name.clone() });
            }
            Err(error) => return Err(error),
        }
        self.remove_leftovers(&lock, name)?;
        let id = ImageId::random();
        Ok(ImageDraft {
            images: self,
            lock,
            name: name.clone(),
            id,
            content: self.create_content(name, id)?,
        })
    }

    /// Makes the instant at which an image exists, or is another: its content must be whole.
    /// The content that it replaces goes; who has it open reads on.
    ///
    /// # Errors
    /// Where the description cannot be written; what was there before then stays.
    pub(crate) fn publish(&self, _lock: &Lock, image: &Image) -> Result<()> {
        let content = content_of(&image.name, image.id);
        let file = self.store.file(&content, Open::Read)?;
        self.store.flush_file(&content, &file)?;
        // The content's name must not come to disk later than the description.
        self.store.flush()?;
        let file = description_of(&image.name);
        let description = Description {
            version: VERSION,
            image: image.clone(),
        };
        let text = serde_json::to_vec_pretty(&description)
            .map_err(|error| FileError::new("write", self.store.path_of(&file), error))?;
        self.store.replace(&file, &text)?;
        self.remove_leftovers_of(&image.name, Some(image.id))
    }

    /// Makes the file for the content of an image that does not exist yet.
    pub(crate) fn create_content(&self, name: &ImageName, id: ImageId) -> Result<File> {
        Ok(self.store.file(&content_of(name, id), Open::CreateNew)?)
    }

    pub(crate) fn content_path(&self, name: &ImageName, id: ImageId) -> PathBuf {
        self.store.path_of(&content_of(name, id))
    }

    /// Where an image is being built.
    pub(crate) fn build_directory(&self, name: &ImageName, id: ImageId) -> PathBuf {
        self.store.path_of(&format!("{name}-{id}{BUILD}"))
    }

    /// Removes what killed builds, imports and deletions left, of this image (whose lock is held)
    /// and of every other that nobody works on.
    pub(crate) fn remove_leftovers(&self, lock: &Lock, name: &ImageName) -> Result<()> {
        let mut names: Vec<ImageName> = self
            .entries()?
            .iter()
            .filter_map(|file| leftover(file).map(|(name, _)| name))
            .filter(|other| other != name)
            .collect();
        names.sort();
        names.dedup();
        for other in names {
            let path = self.image_lock_path(&other);
            if let Some(_lock) = Lock::try_acquire(&path, "removal of leftovers")? {
                self.remove_unnamed(&other)?;
            }
        }
        let _ = lock;
        self.remove_unnamed(name)
    }

    fn remove_unnamed(&self, name: &ImageName) -> Result<()> {
        match self.find(name) {
            Ok(image) => self.remove_leftovers_of(name, Some(image.id)),
            Err(Error::NotFound { .. }) => self.remove_leftovers_of(name, None),
            // What a description that cannot be read names must stay, and keeps nobody from
            // building another image.
            Err(_) => Ok(()),
        }
    }

    fn remove_leftovers_of(&self, name: &ImageName, keep: Option<ImageId>) -> Result<()> {
        for file in self.entries()? {
            let Some((owner, id)) = leftover(&file) else {
                continue;
            };
            if owner != *name {
                continue;
            }
            if file.ends_with(BUILD) {
                let path = self.store.path_of(&file);
                remove_tree(&path).map_err(Error::program("remove", path.display()))?;
            } else if keep != Some(id) {
                let _ = self.store.unlink(&file)?;
            }
        }
        Ok(self.store.flush()?)
    }

    /// Files and directories; names that are not UTF-8 are none of ours.
    fn entries(&self) -> Result<Vec<String>> {
        let path = self.store.path();
        let fail = |error| FileError::new("list", path, error);
        let entries: Vec<_> = fs::read_dir(path)
            .and_then(Iterator::collect::<io::Result<_>>)
            .map_err(fail)?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }
}

/// Removes a tree whose files belong to many users, and nothing that is mounted in it.
pub(crate) fn remove_tree(path: &Path) -> Result<(), ProgramError> {
    Namespace::here()
        .program("rm")?
        .args(["-rf", "--one-file-system", "--"])
        .arg(path)
        .run()
        .map(drop)
}

fn description_of(name: &ImageName) -> String {
    format!("{name}{DESCRIPTION}")
}

fn content_of(name: &ImageName, id: ImageId) -> String {
    format!("{name}-{id}{CONTENT}")
}

/// The image that a content or build directory belongs to.
fn leftover(file: &str) -> Option<(ImageName, ImageId)> {
    const ID_LENGTH: usize = 36;
    let stem = file
        .strip_suffix(CONTENT)
        .or_else(|| file.strip_suffix(BUILD))?;
    let (name, id) = stem.split_at_checked(stem.len().checked_sub(ID_LENGTH)?)?;
    Some((name.strip_suffix('-')?.parse().ok()?, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::kernels::Discarded;

    fn images() -> (tempfile::TempDir, Images) {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        (home, images)
    }

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    /// Writes the content of an image and stops where a killed process would: before the
    /// description.
    fn half(images: &Images, name: &ImageName, content: &[u8]) -> Image {
        let id = ImageId::random();
        let mut file = images.create_content(name, id).unwrap();
        file.write_all(content).unwrap();
        Image {
            id,
            name: name.clone(),
            size: Bytes::new(content.len() as u64),
            boot: None,
            source: ImageSource::Imported {
                file: "test".to_owned(),
            },
            created: Timestamp::UNIX_EPOCH,
        }
    }

    fn whole(images: &Images, name: &ImageName, content: &[u8]) -> Image {
        let image = half(images, name, content);
        let lock = images.lock(name, Duration::ZERO).unwrap();
        images.publish(&lock, &image).unwrap();
        image
    }

    fn files(images: &Images) -> Vec<String> {
        let mut names = images.entries().unwrap();
        names.sort();
        names
    }

    #[test]
    fn its_directories_are_closed_to_others() {
        let (home, _images) = images();
        for directory in ["images", "kernels", "locks"] {
            let facts = fs::metadata(home.path().join(directory)).unwrap();
            assert_eq!(facts.permissions().mode() & 0o777, 0o700, "{directory}");
        }
        assert!(Images::open(&home.path().join("missing")).is_err());
    }

    #[test]
    fn an_image_is_found_as_it_was_described() {
        let (_home, images) = images();
        let a = whole(&images, &name("a.json"), b"a");
        let b = whole(&images, &name("b"), b"bb");
        assert_eq!(images.list().unwrap().images, [a.clone(), b]);
        assert_eq!(images.find(&a.name).unwrap(), a);
        let error = images.find(&name("c")).unwrap_err();
        assert_eq!(error.to_string(), "image c does not exist");
    }

    #[test]
    fn replacing_leaves_one_content_and_its_readers_alone() {
        let (_home, images) = images();
        whole(&images, &name("debian"), b"old");
        let mut reader = images.open_image(&name("debian")).unwrap();
        let new = whole(&images, &name("debian"), b"new");
        assert_eq!(images.list().unwrap().images, std::slice::from_ref(&new));
        let content = content_of(&new.name, new.id);
        assert_eq!(files(&images), [content, "debian.json".to_owned()]);
        let mut text = String::new();
        reader.content.read_to_string(&mut text).unwrap();
        assert_eq!(text, "old");
    }

    #[test]
    fn an_image_without_a_description_does_not_exist_and_is_swept_up() {
        let (home, images) = images();
        let kept = whole(&images, &name("kept"), b"kept");
        half(&images, &name("dead"), b"dead");
        half(&images, &kept.name, b"half a rebuild");
        let build = images.build_directory(&name("dead"), ImageId::random());
        fs::create_dir_all(build.join("tree/etc")).unwrap();
        File::create(home.path().join("images/notes.txt")).unwrap();
        assert_eq!(images.list().unwrap().images, std::slice::from_ref(&kept));

        let other = name("other");
        let lock = images.lock(&other, Duration::ZERO).unwrap();
        images.remove_leftovers(&lock, &other).unwrap();
        let content = content_of(&kept.name, kept.id);
        // What is not ours is not touched.
        assert_eq!(files(&images), [&content, "kept.json", "notes.txt"]);
    }

    #[test]
    fn what_somebody_works_on_is_not_swept_up() {
        let (_home, images) = images();
        let busy = half(&images, &name("busy"), b"busy");
        let _busy_lock = images.lock(&busy.name, Duration::ZERO).unwrap();
        let lock = images.lock(&name("other"), Duration::ZERO).unwrap();
        images.remove_leftovers(&lock, &name("other")).unwrap();
        assert_eq!(files(&images), [content_of(&busy.name, busy.id)]);
    }

    #[test]
    fn deleting_twice_changes_once_and_leaves_nothing() {
        let (_home, images) = images();
        let image = whole(&images, &name("a"), b"a");
        // A name that begins like the other's content.
        let other = whole(&images, &name(&format!("a-{}", image.id)), b"b");
        assert_eq!(images.delete(&image.name).unwrap(), Changed::Yes);
        assert_eq!(images.delete(&image.name).unwrap(), Changed::No);
        assert_eq!(images.list().unwrap().images, std::slice::from_ref(&other));
        assert_eq!(images.delete(&other.name).unwrap(), Changed::Yes);
        assert!(files(&images).is_empty());
    }

    /// Three images that nothing can be told about, `cut`, `new` and `twin`, and their contents.
    fn damaged(images: &Images) {
        for (text, description) in [
            ("cut", &b"{"[..]),
            ("new", br#"{"version": 2, "what": "unknown"}"#),
        ] {
            whole(images, &name(text), b"content");
            let file = description_of(&name(text));
            images.store.replace(&file, description).unwrap();
        }
        // The description of another image, as a copied file has it.
        let other = whole(images, &name("other"), b"other");
        let text = images.store.read("other.json", DESCRIPTION_LIMIT).unwrap();
        images.store.replace("twin.json", &text).unwrap();
        images.create_content(&name("twin"), other.id).unwrap();
        assert_eq!(images.delete(&other.name).unwrap(), Changed::Yes);
    }

    fn names(damaged: &[DamagedImage]) -> Vec<&str> {
        damaged.iter().map(|image| image.name.as_str()).collect()
    }

    #[test]
    fn a_damaged_image_is_listed_apart_and_hides_no_other() {
        let (_home, images) = images();
        let image = whole(&images, &name("fine"), b"fine");
        damaged(&images);
        let listing = images.list().unwrap();
        assert_eq!(listing.images, [image]);
        assert_eq!(names(&listing.damaged), ["cut", "new", "twin"]);
        assert!(matches!(
            listing.damaged.as_slice(),
            [
                DamagedImage {
                    error: Error::Damaged {
                        source: Some(_),
                        ..
                    },
                    ..
                },
                DamagedImage {
                    error: Error::Newer { version: 2, .. },
                    ..
                },
                DamagedImage {
                    error: Error::Damaged { source: None, .. },
                    ..
                },
            ]
        ));
        let error = listing.damaged[0].error.to_string();
        assert!(error.contains("cut.json"), "{error}");
    }

    #[test]
    fn a_damaged_image_can_be_deleted_with_its_content() {
        let (_home, images) = images();
        damaged(&images);
        for text in ["cut", "new", "twin"] {
            assert_eq!(images.delete(&name(text)).unwrap(), Changed::Yes, "{text}");
        }
        assert!(files(&images).is_empty());
        assert!(images.list().unwrap().damaged.is_empty());
    }

    #[test]
    fn a_damaged_image_keeps_its_content_and_nobody_from_working() {
        let (_home, images) = images();
        damaged(&images);
        // Longer than any description of ours, so that it cannot even be read.
        let long = vec![b' '; usize::try_from(DESCRIPTION_LIMIT).unwrap() + 1];
        images.store.replace("twin.json", &long).unwrap();
        let before = files(&images);
        let other = name("other");
        let lock = images.lock(&other, Duration::ZERO).unwrap();
        images.remove_leftovers(&lock, &other).unwrap();
        assert_eq!(files(&images), before);
    }

    #[test]
    fn while_an_image_is_damaged_no_kernel_is_discarded() {
        let (_home, images) = images();
        damaged(&images);
        let kernel = sistemo_model::Digest::from_bytes([7; 32]);
        images.kernels.replace(kernel.as_str(), b"kernel").unwrap();
        let guard = images.hold_kernels("test").unwrap();
        match images.discard_unused_kernels(&guard, &[]).unwrap() {
            Discarded::Nothing { damaged } => assert_eq!(names(&damaged), ["cut", "new", "twin"]),
            other @ Discarded::Unused(_) => panic!("{other:?}"),
        }
        assert!(images.kernel(&kernel).is_ok());
        for text in ["cut", "new", "twin"] {
            assert_eq!(images.delete(&name(text)).unwrap(), Changed::Yes);
        }
        let discarded = images.discard_unused_kernels(&guard, &[]).unwrap();
        assert!(matches!(discarded, Discarded::Unused(1)), "{discarded:?}");
    }

    #[test]
    fn an_image_of_a_newer_version_is_refused() {
        let (_home, images) = images();
        images
            .store
            .replace("a.json", br#"{"version": 2, "what": "unknown"}"#)
            .unwrap();
        assert!(matches!(
            images.find(&name("a")),
            Err(Error::Newer { version: 2, .. })
        ));
    }
}
