//! Images: build, import, list, delete.

use std::path::PathBuf;

use serde::Serialize;

use sistemo_catalog::ImageCopy;
use sistemo_images::{
    BuildRequest, BuildStep, DEBIAN, DamagedImage, Discarded, Error as ImageError, ImageDraft,
    ImageFormat, ImportRequest, KernelGuard, OpenImage,
};
use sistemo_model::{
    Digest, Image, ImageId, ImageName, ImageSource, Lifecycle, PoolName, Reference, SnapshotName,
    Timestamp, VolumeName,
};
use sistemo_pools::Content;

use crate::copying::{data_bytes, on_one_filesystem};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, causes};
use crate::exchange::{RawFile, require_space};
use crate::reporter::Notice;
use crate::sources::Source;
use crate::volumes::pool_error;

/// A Debian to be built.
#[derive(Clone, Debug)]
pub struct NewDebian {
    /// The image's name.
    pub name: ImageName,
    /// The release; without one, the host's own.
    pub suite: Option<String>,
    /// Packages beyond the usual ones.
    pub include: Vec<String>,
}

/// A file to be imported as an image.
#[derive(Clone, Debug)]
pub struct NewImport {
    /// The file.
    pub file: PathBuf,
    /// The image's name.
    pub name: ImageName,
    /// The kernel it boots; without one it boots by firmware.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The file's format, where its name does not tell.
    pub format: Option<ImageFormat>,
    /// A pool to put the image into right away, for root volumes to be cloned from.
    pub pool: Option<PoolName>,
}

/// An image to be made of a volume.
#[derive(Clone, Debug)]
pub struct NewOfVolume {
    /// The volume.
    pub volume: Reference,
    /// The snapshot of it; without one, the volume as it is now.
    pub snapshot: Option<SnapshotName>,
    /// The image's name.
    pub name: ImageName,
    /// A pool to put the image into right away, for root volumes to be cloned from.
    pub pool: Option<PoolName>,
}

/// What users see of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageView {
    /// The identifier of its content; a rebuilt image has a new one.
    pub id: ImageId,
    /// Its name.
    pub name: ImageName,
    /// Its virtual size in bytes: the smallest root volume it fits on.
    pub size_bytes: u64,
    /// What it takes on the host, in bytes; `None` where its file is missing.
    pub used_bytes: Option<u64>,
    /// The digest of the kernel it boots; `None` where it boots by firmware.
    pub kernel: Option<Digest>,
    /// The digest of its initial RAM disk.
    pub initrd: Option<Digest>,
    /// Where it came from: `built`, `imported` or `volume`.
    pub source: &'static str,
    /// The release it was built from.
    pub suite: Option<String>,
    /// The packages it was built with beyond the usual ones.
    pub include: Vec<String>,
    /// The file it was imported from, without its directory.
    pub file: Option<String>,
    /// The volume it was made of, by the name that had then.
    pub volume: Option<VolumeName>,
    /// The snapshot of that volume.
    pub snapshot: Option<SnapshotName>,
    /// Where its content is on the host.
    pub path: PathBuf,
    /// The pools that it stands in, for root volumes to be cloned from.
    pub pools: Vec<PoolName>,
    /// When it was made.
    pub created: Timestamp,
}

impl Engine {
    /// All images, by name.
    ///
    /// # Errors
    /// Where the image store cannot be read.
    pub fn images(&self) -> Result<Vec<ImageView>> {
        let listing = self.images.list().map_err(Error::ImageStore)?;
        self.tell_of_damaged(&listing.damaged);
        listing
            .images
            .into_iter()
            .map(|image| self.view_image(image))
            .collect()
    }

    /// One image.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn image(&self, name: &ImageName) -> Result<ImageView> {
        let image = self
            .images
            .find(name)
            .map_err(|source| image_error("read", name, source))?;
        self.view_image(image)
    }

    /// Builds a Debian; an image of the same name is replaced when the new one is whole. Volumes
    /// made from the old one keep the kernel they boot.
    ///
    /// # Errors
    /// Where a program is missing, or the build fails; then the old image stays.
    pub fn build_debian(&self, new: NewDebian) -> Result<ImageView> {
        let NewDebian {
            name,
            suite,
            include,
        } = new;
        let request = BuildRequest {
            name: name.clone(),
            suite,
            include,
        };
        let image = self.staged(&name, |progress| {
            self.images.build_debian(&request, progress)
        })?;
        self.discard_unused_kernels();
        self.discard_unused_image_copies();
        self.view_image(image)
    }

    /// Makes an image of a raw or qcow2 file.
    ///
    /// # Errors
    /// Where the name is taken, the file is not what it should be, or the pool that it is to
    /// stand in does not clone at once. Where only that pool has no room the image is there.
    pub fn import_image(&self, new: NewImport) -> Result<ImageView> {
        let NewImport {
            file,
            name,
            kernel,
            initrd,
            format,
            pool,
        } = new;
        if let Some(pool) = &pool {
            self.expect_instant_clones(pool)?;
        }
        self.reporter
            .stage(&format!("importing {}", file.display()));
        let request = ImportRequest {
            file,
            name: name.clone(),
            kernel,
            initrd,
            format,
        };
        let mut progress = |done, total| self.reporter.progress(done, total);
        let imported = self.images.import(&request, &mut progress);
        self.reporter.stage_over();
        let image = imported.map_err(|source| image_error("import", &name, source))?;
        self.stand_in_pool(&name, pool.as_ref())?;
        self.view_image(image)
    }

    /// Makes an image of all that a volume holds. It boots the kernel that the volume does, where
    /// that boots one. A crash leaves content that no image names, which the next build or import
    /// removes.
    ///
    /// # Errors
    /// Where the name is taken, the volume's machine is active and no snapshot is named, or there
    /// is no room. Where only the pool that it is to stand in has no room the image is there.
    pub fn create_image(&self, new: &NewOfVolume) -> Result<ImageView> {
        if let Some(pool) = &new.pool {
            self.expect_instant_clones(pool)?;
        }
        let name = &new.name;
        let fail = |source| image_error("create", name, source);
        // Held to the end: until the image boots them, it is the volume that keeps its kernels.
        let source = self.hold_source(&new.volume, new.snapshot.as_ref(), "copy")?;
        let draft = self.images.draft(name).map_err(fail)?;
        let content = source.content()?;
        self.reporter
            .stage(&format!("copying {}", source.volume.name));
        let written = self.fill_image(&source, content.as_ref(), &draft);
        self.reporter.stage_over();
        written?;
        let origin = ImageSource::Volume {
            volume: source.volume.name.clone(),
            snapshot: new.snapshot.clone(),
        };
        let made = draft.publish(source.volume.boot.clone(), origin);
        let image = made.map_err(fail)?;
        drop(source);
        self.stand_in_pool(name, new.pool.as_ref())?;
        self.view_image(image)
    }

    fn fill_image(
        &self,
        source: &Source<'_>,
        content: &dyn Content,
        draft: &ImageDraft<'_>,
    ) -> Result<()> {
        let place = draft.directory();
        let action = format!("create image {}", draft.name());
        if !on_one_filesystem(source.pool.directory(), place) {
            let needed = data_bytes(content);
            let needed = needed.map_err(|error| pool_error(&source.volume, "read", error))?;
            require_space(place, needed, || action.clone())?;
        }
        let raw = RawFile {
            file: draft.content(),
            path: place,
            action: &action,
        };
        self.write_raw(source, content, &raw)
    }

    /// Puts an image into a pool.
    fn stand_in_pool(&self, name: &ImageName, pool: Option<&PoolName>) -> Result<()> {
        let Some(pool) = pool else { return Ok(()) };
        let opened = self.images.open_image(name);
        let OpenImage { image, content } =
            opened.map_err(|source| image_error("open", name, source))?;
        self.ensure_image_copy(&image, &content, pool).map(drop)
    }

    /// Deletes an image. Volumes made from it, and the kernels they boot, stay. Returns it as it
    /// was; `None` where it was damaged and nothing could be read of it.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub fn delete_image(&self, name: &ImageName) -> Result<Option<ImageView>> {
        let view = match self.images.find(name) {
            Ok(image) => Some(self.view_image(image)?),
            Err(error @ ImageError::NotFound { .. }) => {
                return Err(image_error("delete", name, error));
            }
            Err(_) => None,
        };
        let _ = self
            .images
            .delete(name)
            .map_err(|source| image_error("delete", name, source))?;
        self.discard_unused_kernels();
        self.discard_unused_image_copies();
        Ok(view)
    }

    /// Opens an image; the one called `debian` is built where it is missing.
    pub(crate) fn open_or_build_image(&self, name: &ImageName) -> Result<OpenImage> {
        match self.images.open_image(name) {
            Err(ImageError::NotFound { .. }) if name.as_str() == DEBIAN => {
                self.staged(name, |progress| self.images.ensure_debian(name, progress))?;
                self.images.open_image(name)
            }
            opened => opened,
        }
        .map_err(|source| image_error("open", name, source))
    }

    /// Keeps kernels from being discarded until a volume that boots one is recorded.
    ///
    /// # Errors
    /// Where the image's kernel was discarded before, because the image was deleted meanwhile.
    pub(crate) fn hold_kernels(&self, boot: Option<&sistemo_model::Boot>) -> Result<KernelGuard> {
        let guard = self
            .images
            .hold_kernels(self.purpose())
            .map_err(Error::ImageStore)?;
        for digest in boot
            .iter()
            .flat_map(|boot| std::iter::once(&boot.kernel).chain(&boot.initrd))
        {
            self.images.kernel(digest).map_err(Error::ImageStore)?;
        }
        Ok(guard)
    }

    /// Discards the kernels that nothing boots any more. What it follows has been done: kernels
    /// that stay for now cost room and nothing else.
    fn discard_unused_kernels(&self) {
        let discard = || {
            let guard = self.hold_kernels(None)?;
            let volumes = self.catalogue.read(|session| session.all_volumes())?;
            let in_use: Vec<Digest> = volumes
                .into_iter()
                .filter_map(|volume| volume.boot)
                .flat_map(|boot| std::iter::once(boot.kernel).chain(boot.initrd))
                .collect();
            self.images
                .discard_unused_kernels(&guard, &in_use)
                .map_err(Error::ImageStore)
        };
        match discard() {
            Ok(Discarded::Unused(gone)) => {
                tracing::debug!(gone, "discarded kernels that nothing boots");
            }
            Ok(Discarded::Nothing { damaged }) => self.tell_of_damaged(&damaged),
            Err(error) => tracing::warn!(%error, "cannot discard kernels"),
        }
    }

    fn tell_of_damaged(&self, images: &[DamagedImage]) {
        for image in images {
            let (name, reason) = (image.name.clone(), causes(&image.error).join(": "));
            self.reporter.notice(&Notice::DamagedImage { name, reason });
        }
    }

    /// Runs a build and tells the reporter about each of its steps.
    fn staged(
        &self,
        name: &ImageName,
        build: impl FnOnce(&mut dyn FnMut(BuildStep)) -> Result<Image, ImageError>,
    ) -> Result<Image> {
        let mut begun = false;
        let outcome = build(&mut |step| {
            if begun {
                self.reporter.stage_over();
            }
            begun = true;
            self.reporter
                .stage(&format!("building image {name}: {step}"));
        });
        if begun {
            self.reporter.stage_over();
        }
        outcome.map_err(|source| image_error("build", name, source))
    }

    fn view_image(&self, image: Image) -> Result<ImageView> {
        let copies = self.catalogue.read(|session| session.image_copies())?;
        let here = |copy: &ImageCopy| copy.image == image.id && copy.lifecycle == Lifecycle::Ready;
        let pools = copies.into_iter().filter(here).map(|copy| copy.pool);
        let pools = pools.collect();
        let used = self.images.used_bytes(&image).ok();
        let path = self.images.content(&image);
        let (kernel, initrd) = image
            .boot
            .map_or((None, None), |boot| (Some(boot.kernel), boot.initrd));
        let mut view = ImageView {
            id: image.id,
            name: image.name,
            size_bytes: image.size.get(),
            used_bytes: used.map(sistemo_model::Bytes::get),
            kernel,
            initrd,
            source: "",
            suite: None,
            include: Vec::new(),
            file: None,
            volume: None,
            snapshot: None,
            path,
            pools,
            created: image.created,
        };
        match image.source {
            ImageSource::Built { suite, include } => {
                view.source = "built";
                (view.suite, view.include) = (Some(suite), include);
            }
            ImageSource::Imported { file } => {
                view.source = "imported";
                view.file = Some(file);
            }
            ImageSource::Volume { volume, snapshot } => {
                view.source = "volume";
                (view.volume, view.snapshot) = (Some(volume), snapshot);
            }
        }
        Ok(view)
    }
}

fn image_error(action: &'static str, name: &ImageName, source: ImageError) -> Error {
    match source {
        ImageError::NotFound { name } => Error::NotFound {
            kind: Kind::Image,
            reference: name.to_string(),
        },
        ImageError::NameTaken { name } => Error::NameTaken {
            kind: Kind::Image,
            name: name.to_string(),
        },
        source => Error::Image {
            action,
            image: name.clone(),
            source,
        },
    }
}
