//! Building a Debian with mmdebstrap: a lean guest that boots by its own kernel, reaches SSH
//! early, and has no identity until its machine gives it one.
//!
//! The tree is installed beside the images, by a root that may own files of every user (see
//! `namespace`), and made a filesystem by the same root. A killed build leaves its directory,
//! which the next one removes; its programs hold the image's lock for as long as they live, so
//! the next one waits for them.

mod assemble;
mod command_line;
mod guest;
mod mirror;
mod namespace;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sistemo_host::directory::Directory;
use sistemo_host::lock::{Lock, LockError};
use sistemo_host::program::{Program, ProgramError};
use sistemo_model::{Image, ImageId, ImageName, ImageSource, Timestamp};

pub use command_line::{GuestIdentity, command_line};
pub(crate) use namespace::Namespace;

use crate::error::{Error, Result};
use crate::store::Images;

/// The name of the image that is built the first time it is deployed.
pub const DEBIAN: &str = "debian";

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRequest {
    /// The image's name; an image that has it is replaced when the new one is whole.
    pub name: ImageName,
    /// The release, bookworm or newer; if not given, the host's own, where it is such a Debian.
    pub suite: Option<String>,
    /// Packages to include beyond the usual ones.
    pub include: Vec<String>,
}

/// What a build is doing, in the order in which it comes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildStep {
    /// Another process builds or changes this image.
    Waiting {
        /// Who: `process 123 (…)`.
        holder: String,
    },
    /// Fetching the lists of packages.
    PackageLists,
    /// Fetching the packages.
    Downloading,
    /// Unpacking the packages that every system has.
    Extracting,
    /// Installing those.
    InstallingEssentials,
    /// Installing the others.
    InstallingPackages,
    /// Removing what only the installation needed.
    Cleaning,
    /// Making the filesystem.
    Filesystem,
    /// Keeping the kernel, and making the image known.
    Publishing,
}

impl fmt::Display for BuildStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BuildStep::Waiting { holder } => return write!(f, "waiting for {holder}"),
            BuildStep::PackageLists => "fetching package lists",
            BuildStep::Downloading => "downloading packages",
            BuildStep::Extracting => "extracting packages",
            BuildStep::InstallingEssentials => "installing essential packages",
            BuildStep::InstallingPackages => "installing packages",
            BuildStep::Cleaning => "cleaning up",
            BuildStep::Filesystem => "making the filesystem",
            BuildStep::Publishing => "storing the kernel",
        })
    }
}

impl BuildStep {
    /// What mmdebstrap begins with a line of its output (mmdebstrap 1.3 and 1.4).
    fn begun_by(line: &str) -> Option<BuildStep> {
        let steps = [
            ("running apt-get update", BuildStep::PackageLists),
            ("downloading packages with apt", BuildStep::Downloading),
            ("extracting archives", BuildStep::Extracting),
            (
                "installing essential packages",
                BuildStep::InstallingEssentials,
            ),
            (
                "installing remaining packages",
                BuildStep::InstallingPackages,
            ),
            ("cleaning package lists", BuildStep::Cleaning),
        ];
        let said = line.strip_prefix("I: ")?;
        steps
            .into_iter()
            .find(|(words, _)| said.starts_with(words))
            .map(|(_, step)| step)
    }
}

/// Makes sure that this user may own the files of an image's many users while it is built.
///
/// # Errors
/// [`Error::NoSubordinateIds`], or [`Error::Program`] where `newuidmap` is not installed.
pub fn check_subordinate_ids() -> Result<()> {
    Namespace::here().check(DEBIAN)
}

impl Images {
    /// Builds a Debian, replacing an image of the same name when the new one is whole. Takes
    /// about 40 s; where another process builds this image, waits for it first.
    ///
    /// A crash leaves the old image, if there was one, and a build directory that the next build
    /// or import removes.
    ///
    /// # Errors
    /// Where the release or a package has no proper name, the release is too old, a program that is needed is missing
    /// ([`Error::Program`] with [`ProgramError::NotInstalled`]), an ordinary user has no
    /// subordinate IDs, or the build fails; what was there before then stays.
    pub fn build_debian(
        &self,
        request: &BuildRequest,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Image> {
        check(request)?;
        let lock = self.lock_patiently(&request.name, progress)?;
        self.build_locked(&lock, request, progress)
    }

    /// Returns the image of this name, building a Debian if there is none: once, also where
    /// several processes come at the same time, of which the others wait.
    ///
    /// # Errors
    /// As [`Images::build_debian`] and [`Images::find`].
    pub fn ensure_debian(
        &self,
        name: &ImageName,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Image> {
        match self.find(name) {
            Err(Error::NotFound { .. }) => {}
            found => return found,
        }
        let request = BuildRequest {
            name: name.clone(),
            suite: None,
            include: Vec::new(),
        };
        check(&request)?;
        let lock = self.lock_patiently(name, progress)?;
        match self.find(name) {
            Err(Error::NotFound { .. }) => self.build_locked(&lock, &request, progress),
            found => found,
        }
    }

    fn lock_patiently(
        &self,
        name: &ImageName,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Lock> {
        match self.lock(name, Duration::ZERO) {
            Err(LockError::Held { holder, .. }) => {
                progress(BuildStep::Waiting { holder });
                Ok(self.lock(name, Duration::MAX)?)
            }
            other => Ok(other?),
        }
    }

    fn build_locked(
        &self,
        lock: &Lock,
        request: &BuildRequest,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Image> {
        self.remove_leftovers(lock, &request.name)?;
        let built = self.build_and_publish(lock, request, progress);
        if built.is_err() {
            // The error that matters is the one above; what stays is removed at the next build.
            let _ = self.remove_leftovers(lock, &request.name);
        }
        built
    }

    fn build_and_publish(
        &self,
        lock: &Lock,
        request: &BuildRequest,
        progress: &mut dyn FnMut(BuildStep),
    ) -> Result<Image> {
        let BuildRequest {
            name,
            suite,
            include,
        } = request;
        let id = ImageId::random();
        let suite = suite.clone().unwrap_or_else(mirror::default_suite);
        let (work, _) = Directory::create(&self.build_directory(name, id))?;
        let work = work.path();
        guest::write_overlay(&work.join(OVERLAY))?;
        install(work, lock, &suite, include, progress)
            .map_err(Error::program("install the system of image", name))?;
        let tree = work.join(TREE);
        guest::remove_identity(&tree)?;
        let found = assemble::inspect(name, &tree)?;

        progress(BuildStep::Filesystem);
        let content = self.create_content(name, id)?;
        let path = self.content_path(name, id);
        let size = assemble::make_filesystem(&tree, &path, &content, lock)?;

        progress(BuildStep::Publishing);
        let guard = self.hold_kernels("image build")?;
        let boot = self.add_boot(&guard, &found.kernel, Some(&found.initrd))?;
        let image = Image {
            id,
            name: name.clone(),
            size,
            boot: Some(boot),
            source: ImageSource::Built {
                suite,
                include: include.clone(),
            },
            created: Timestamp::now(),
        };
        self.publish(lock, &image)?;
        Ok(image)
    }
}

/// The directories in a build directory: the files of ours, and the system being installed.
const OVERLAY: &str = "overlay";
const TREE: &str = "tree";

/// Refuses what would fail half-way through, before anything is made.
fn check(request: &BuildRequest) -> Result<()> {
    let BuildRequest {
        name,
        suite,
        include,
    } = request;
    if let Some(suite) = suite.as_ref().filter(|suite| !mirror::is_suite(suite)) {
        return Err(Error::Suite {
            suite: suite.clone(),
        });
    }
    if let Some(suite) = suite.as_ref().filter(|suite| mirror::is_too_old(suite)) {
        return Err(Error::SuiteTooOld {
            suite: suite.clone(),
        });
    }
    if let Some(package) = include.iter().find(|package| !is_package(package)) {
        return Err(Error::PackageName {
            name: package.clone(),
        });
    }
    if std::env::consts::ARCH != "x86_64" {
        return Err(Error::Architecture {
            architecture: std::env::consts::ARCH,
        });
    }
    for program in ["mmdebstrap", "mkfs.ext4", "unshare"] {
        Program::find(program).map_err(Error::program("prepare to build image", name))?;
    }
    Namespace::here().check(name.as_str())
}

/// Debian policy 5.6.1; one beginning with a letter or digit cannot be taken for an option.
fn is_package(name: &str) -> bool {
    let inside =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(inside)
}

/// Installs the system in `work/tree`.
///
/// mmdebstrap's own user namespace would need a path that strangers may search; ours does not, as
/// its root is the user. It is told to expect one, for then it neither makes device nodes nor
/// mounts what needs a real root, and the image is the same whoever builds it.
fn install(
    work: &Path,
    lock: &Lock,
    suite: &str,
    include: &[String],
    progress: &mut dyn FnMut(BuildStep),
) -> Result<(), ProgramError> {
    let packages: Vec<&str> = guest::PACKAGES
        .into_iter()
        .chain(include.iter().map(String::as_str))
        .collect();
    let mut program = Namespace::here()
        .program("mmdebstrap")?
        .inherit(lock)?
        .current_dir(work)
        .env("TMPDIR", work)
        .args(["--mode=unshare", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", packages.join(",")))
        .args(guest::dpkg_options().map(|option| format!("--dpkgopt={option}")))
        // Relative, so that no character of our path means anything to the hook's parser.
        .arg(format!("--essential-hook=sync-in {OVERLAY} /"));
    for (variable, proxy) in mirror::proxies() {
        if std::env::var_os(variable).is_none() {
            program = program.env(variable, proxy);
        }
    }
    program
        .arg(suite)
        .arg(work.join(TREE))
        .args(mirror::HostSources::read().lines(suite))
        .run_watched(&mut |line| {
            tracing::debug!(line, "mmdebstrap");
            if let Some(step) = BuildStep::begun_by(line) {
                progress(step);
            }
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(suite: Option<&str>, include: &[&str]) -> BuildRequest {
        BuildRequest {
            name: DEBIAN.parse().unwrap(),
            suite: suite.map(str::to_owned),
            include: include.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_no_package_or_release_is_refused_before_anything_is_made() {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        let mut silent = |_| {};
        for package in ["", "x", "-oops", "a b", "a,b", "Vim", "vim\n", "vim;ls"] {
            let built = images.build_debian(&request(None, &["vim", package]), &mut silent);
            assert!(
                matches!(built, Err(Error::PackageName { ref name }) if name == package),
                "{package}: {built:?}"
            );
        }
        for suite in ["", "--help", "a/b", "x y"] {
            let built = images.build_debian(&request(Some(suite), &[]), &mut silent);
            assert!(matches!(built, Err(Error::Suite { .. })), "{suite}");
        }
        let built = images.build_debian(&request(Some("bullseye"), &[]), &mut silent);
        assert_eq!(
            built.unwrap_err().to_string(),
            "Debian bullseye is too old: its systemd takes no SSH key from the kernel command line"
        );
        assert_eq!(fs::read_dir(home.path().join("images")).unwrap().count(), 0);
    }

    #[test]
    fn packages_of_debian_are_package_names() {
        for name in ["vim", "g++", "libstdc++6", "postgresql-15", "7zip", "0ad"] {
            assert!(is_package(name), "{name}");
        }
        assert!(guest::PACKAGES.into_iter().all(is_package));
    }

    #[test]
    fn an_existing_image_is_not_built_again() {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        let file = home.path().join("disk.raw");
        fs::copy("/proc/self/exe", &file).unwrap();
        let there = images
            .import(
                &crate::ImportRequest {
                    file,
                    name: DEBIAN.parse().unwrap(),
                    kernel: None,
                    initrd: None,
                    format: None,
                },
                &mut |_, _| {},
            )
            .unwrap();
        let ensured = images.ensure_debian(&there.name, &mut |step| panic!("{step}"));
        assert_eq!(ensured.unwrap(), there);
    }

    #[test]
    fn a_build_that_waited_takes_what_the_other_built() {
        let home = tempfile::tempdir().unwrap();
        let images = Images::open(home.path()).unwrap();
        let name: ImageName = DEBIAN.parse().unwrap();
        let lock = images.lock(&name, Duration::ZERO).unwrap();
        let (told, waits) = std::sync::mpsc::channel();
        let home_path = home.path().to_owned();
        let waiter = std::thread::spawn(move || {
            let images = Images::open(&home_path).unwrap();
            let name: ImageName = DEBIAN.parse().unwrap();
            images.ensure_debian(&name, &mut |step| told.send(step).unwrap())
        });
        let step = waits.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(matches!(step, BuildStep::Waiting { ref holder } if holder.contains("process")));
        let id = ImageId::random();
        images
            .create_content(&name, id)
            .unwrap()
            .set_len(512)
            .unwrap();
        let other = Image {
            id,
            name,
            size: sistemo_model::Bytes::new(512),
            boot: None,
            source: ImageSource::Imported {
                file: "other".to_owned(),
            },
            created: Timestamp::UNIX_EPOCH,
        };
        images.publish(&lock, &other).unwrap();
        drop(lock);
        assert_eq!(waiter.join().unwrap().unwrap(), other);
        assert!(waits.recv().is_err(), "it went on to build");
    }

    #[test]
    fn mmdebstraps_lines_become_steps() {
        assert_eq!(
            BuildStep::begun_by("I: installing remaining packages inside the chroot..."),
            Some(BuildStep::InstallingPackages)
        );
        assert_eq!(BuildStep::begun_by("I: done"), None);
        assert_eq!(BuildStep::begun_by("extracting archives..."), None);
    }
}
