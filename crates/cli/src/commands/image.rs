//! `sistemo image …`

use std::collections::HashSet;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use sistemo::images::{ImageView, NewDebian, NewImport, NewOfVolume};
use sistemo::model::{Bytes, ImageName, PoolName, Reference, SnapshotName};
use sistemo::{Error, ImageFormat, Kind};

use crate::arguments::{disk_formats, reference, value};
use crate::confirmation::Beforehand;
use crate::failure::Failure;
use crate::output::details::Details;
use crate::output::table::{Cell, Column, Table};
use crate::output::{Described, Shown};
use crate::session::Session;

/// A verb for images.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a distribution's packages
    ///
    /// Deploying `debian` builds it the first time by itself. Building it again replaces it;
    /// volumes made from it before keep booting what they were made with.
    #[command(after_help = "\
Examples:
  sistemo image build debian
  sistemo image build debian --suite trixie --include postgresql,vim")]
    Build(Build),
    /// Make an image of a disk image file
    ///
    /// With a kernel, the file holds a root filesystem and boots that kernel. Without, it holds a
    /// partition table and boots by firmware.
    #[command(after_help = "\
Examples:
  sistemo image import cloud.qcow2 --name cloud
  sistemo image import rootfs.ext4 --name mine --kernel vmlinuz --initrd initrd.img")]
    Import(Import),
    /// Make an image of a volume
    ///
    /// The image holds all that the volume does, and boots the same kernel where that does. The
    /// machine that holds the volume must be stopped, unless an image is made of a snapshot.
    ///
    /// A machine deployed from it has a machine ID, SSH host keys and a name of its own, unless it
    /// boots by firmware. All else that was left on the volume is in the image: passwords, tokens,
    /// other keys, logs.
    #[command(after_help = "\
Examples:
  sistemo image create --from-volume db1-root --name golden
  sistemo image create --from-volume db1-root --snapshot clean --name golden2 -P fast")]
    Create(Create),
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about an image
    Show {
        /// The image's name
        #[arg(value_name = "IMAGE", value_parser = value::<ImageName>)]
        image: ImageName,
    },
    /// Delete images
    ///
    /// Volumes made from them stay, and keep booting.
    #[command(
        visible_alias = "rm",
        after_help = "\
Example:
  sistemo image delete debian"
    )]
    Delete(Delete),
}

/// What `image build` takes.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The distribution
    #[arg(value_enum, value_name = "DISTRIBUTION")]
    distribution: Distribution,
    /// What to call it
    #[arg(
        long,
        value_parser = value::<ImageName>,
        default_value = "debian",
        allow_hyphen_values = true
    )]
    name: ImageName,
    /// The release, bookworm or later; without one, the host's own where it is such a Debian
    #[arg(long)]
    suite: Option<String>,
    /// Packages to include beyond the usual ones
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    include: Vec<String>,
}

/// A distribution that images can be built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Distribution {
    /// Debian
    Debian,
}

/// What `image import` takes.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The disk image
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// What to call it
    #[arg(long, value_parser = value::<ImageName>, allow_hyphen_values = true)]
    name: ImageName,
    /// The kernel it boots
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// How the file is stored; without it, its name decides
    #[arg(long, value_parser = disk_formats())]
    format: Option<ImageFormat>,
    /// Put it into this pool right away, for root volumes to be cloned from
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
}

/// What `image create` takes.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The volume to make it of
    #[arg(long, value_name = "VOLUME", value_parser = reference, required = true)]
    from_volume: Reference,
    /// Make it of this snapshot of the volume instead of the volume as it is now
    #[arg(long, value_parser = value::<SnapshotName>, allow_hyphen_values = true)]
    snapshot: Option<SnapshotName>,
    /// What to call it
    #[arg(long, value_parser = value::<ImageName>, allow_hyphen_values = true)]
    name: ImageName,
    /// Put it into this pool right away, for root volumes to be cloned from
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
}

/// What `image delete` takes.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The images' names
    #[arg(value_name = "IMAGE", value_parser = value::<ImageName>, required = true)]
    images: Vec<ImageName>,
    #[command(flatten)]
    beforehand: Beforehand,
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, session: &Session) -> Result<(), Failure> {
        let engine = session.engine()?;
        let output = session.output;
        match self {
            Command::Build(Build { distribution, name, suite, include }) => {
                let image = match distribution {
                    Distribution::Debian => {
                        engine.build_debian(NewDebian { name, suite, include })?
                    }
                };
                output.one(&image)
            }
            Command::Import(Import { file, name, kernel, initrd, format, pool }) => {
                let new = NewImport { file, name, kernel, initrd, format, pool };
                output.one(&engine.import_image(new)?)
            }
            Command::Create(Create { from_volume, snapshot, name, pool }) => {
                let new = NewOfVolume { volume: from_volume, snapshot, name, pool };
                output.one(&engine.create_image(&new)?)
            }
            Command::List => output.list(
                &engine.images()?,
                "no images yet; `sistemo image build debian` makes one, and so does the first deploy",
            ),
            Command::Show { image } => output.details(&engine.image(&image)?),
            Command::Delete(delete) => delete.run(&engine, session),
        }
    }
}

impl Delete {
    fn run(self, engine: &sistemo::Engine, session: &Session) -> Result<(), Failure> {
        let mut seen = HashSet::new();
        let mut lost = Vec::new();
        for name in &self.images {
            let size = match engine.image(name) {
                Ok(image) => Bytes::new(image.size_bytes).to_string(),
                // Deleting it is all that can be done with it.
                Err(Error::Image { .. }) => "damaged".to_owned(),
                Err(error) => return Err(error.into()),
            };
            if !seen.insert(name) {
                return Err(Failure::Repeated {
                    kind: Kind::Image,
                    name: name.to_string(),
                });
            }
            lost.push(format!("image {name} ({size})"));
        }
        self.beforehand.confirm(&lost)?;
        let mut deleted = Vec::new();
        let outcome = self.images.iter().try_for_each(|name| {
            deleted.extend(engine.delete_image(name)?);
            session.output.note(&format!("deleted image {name}"));
            Ok(())
        });
        // What is gone is told also where a later one could not be deleted.
        session.output.deleted(&deleted)?;
        outcome
    }
}

/// How machines made from the image start.
fn boots_by(image: &ImageView) -> &'static str {
    if image.kernel.is_some() {
        "kernel"
    } else {
        "firmware"
    }
}

impl Shown for ImageView {
    fn table(images: &[ImageView]) -> Table {
        let columns = ["NAME", "SIZE", "USED", "BOOTS BY", "SOURCE", "CREATED"];
        let mut table = Table::new(columns.map(Column::new).to_vec());
        for image in images {
            let volume = image.volume.as_ref().map(ToString::to_string);
            let from = image.suite.as_ref().or(image.file.as_ref());
            let source = match from.or(volume.as_ref()) {
                Some(from) => format!("{} ({from})", image.source),
                None => image.source.to_string(),
            };
            table.row(vec![
                Cell::new(&image.name),
                Cell::new(Bytes::new(image.size_bytes)),
                Cell::maybe(image.used_bytes.map(Bytes::new)),
                Cell::new(boots_by(image)),
                Cell::new(source),
                Cell::new(format!("{:.0}", image.created)),
            ]);
        }
        table
    }
}

impl Described for ImageView {
    fn details(&self) -> Details {
        let mut details = Details::default();
        details.line("Name", &self.name);
        details.line("Size", Bytes::new(self.size_bytes));
        details.maybe("Used on disk", self.used_bytes.map(Bytes::new));
        details.line("Boots by", boots_by(self));
        details.if_any("Kernel", self.kernel.as_ref());
        details.if_any("Initrd", self.initrd.as_ref());
        details.line("Source", self.source);
        details.if_any("Suite", self.suite.as_ref());
        details.several("Includes", self.include.iter().cloned());
        details.if_any("File", self.file.as_ref());
        details.if_any("Volume", self.volume.as_ref());
        details.if_any("Snapshot", self.snapshot.as_ref());
        details.line("Path", self.path.display());
        details.several("In pools", self.pools.iter().map(ToString::to_string));
        details.line("Created", format!("{:.0}", self.created));
        details
    }
}
