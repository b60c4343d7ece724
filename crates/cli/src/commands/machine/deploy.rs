//! `sistemo machine deploy`

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueHint};
use sistemo::machines::{self, DeploySource, MachineView, StartMode};
use sistemo::model::{
    Bytes, Exposure, ImageName, Lifetime, MachineName, PoolName, Reference, VcpuCount, VmmChoice,
};
use sistemo::{Engine, Error, ImageFormat};

use crate::arguments::{reference, size, value};
use crate::failure::Failure;
use crate::session::Session;

/// The examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  sistemo machine deploy debian
  sistemo machine deploy debian --name db1 --storage 10G --attach pgdata
  sistemo machine deploy debian --name web --memory 1G --expose 8080:80
  sistemo machine deploy ./disk.qcow2 --name imported
  sistemo machine deploy --volume db1-root --name db2     # boots an existing volume
  sistemo machine deploy --template work --name mail --attach maildir
  sistemo machine deploy --template work --ephemeral      # gone when it stops";

/// What `machine deploy` takes.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The image to start from: its name, or the path of a raw, qcow2 or ext4 file
    #[arg(value_parser = Source::parse, value_hint = ValueHint::FilePath)]
    image: Option<Source>,
    /// The machine's name, which is its host name too; without one, made up from the image's
    #[arg(long, value_parser = value::<MachineName>, allow_hyphen_values = true)]
    name: Option<MachineName>,
    /// How many virtual processors it has [default: the setting `vcpus`, 2]
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = value::<VcpuCount>,
        allow_hyphen_values = true
    )]
    vcpus: Option<VcpuCount>,
    /// How much memory it has [default: the setting `memory`, 512M]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    memory: Option<Bytes>,
    /// How large its root volume is [default: the setting `storage`, 2G, or the image's size if larger]
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size,
        allow_hyphen_values = true,
        conflicts_with = "volume"
    )]
    storage: Option<Bytes>,
    /// The pool to make its root volume in
    #[arg(
        short = 'P',
        long,
        value_parser = value::<PoolName>,
        allow_hyphen_values = true,
        conflicts_with = "volume"
    )]
    pool: Option<PoolName>,
    /// Volumes to attach, in this order: the first becomes /dev/vdb
    #[arg(long, value_name = "VOLUME", value_parser = reference, value_delimiter = ',')]
    attach: Vec<Reference>,
    /// Boot from this volume, which becomes the root volume and is never deleted with the machine
    #[arg(long, value_parser = reference, conflicts_with = "image")]
    volume: Option<Reference>,
    /// Start from the root volume of this machine: a clone of it is made at each start, and thrown
    /// away at each stop
    #[arg(
        long,
        value_name = "MACHINE",
        value_parser = reference,
        conflicts_with_all = ["image", "volume", "storage"]
    )]
    template: Option<Reference>,
    /// Let the machine be gone when it stops, its root volume with it; volumes attached to it stay
    #[arg(long)]
    ephemeral: bool,
    /// Make a guest port reachable on the host, on 127.0.0.1 unless an address is given
    #[arg(
        long,
        value_name = "[HOST:]GUEST",
        value_parser = value::<Exposure>,
        allow_hyphen_values = true
    )]
    expose: Vec<Exposure>,
    /// What runs it [default: the setting `vmm`, auto]
    #[arg(long, value_parser = vmms())]
    vmm: Option<VmmChoice>,
    /// Make the machine without starting it
    #[arg(long)]
    no_start: bool,
    /// Return as soon as it runs, without waiting until it answers
    #[arg(long)]
    no_wait: bool,
}

fn vmms() -> impl TypedValueParser<Value = VmmChoice> {
    PossibleValuesParser::new([VmmChoice::Auto, VmmChoice::Qemu].map(VmmChoice::as_str))
        .try_map(|word| word.parse::<VmmChoice>())
}

/// What the words say the machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Image(ImageName),
    File(PathBuf),
    /// An image if there is one of that name, else a file.
    Either(ImageName, PathBuf),
    Volume(Reference),
    Template(Reference),
}

impl Source {
    fn parse(text: &str) -> Result<Source, String> {
        let path = Path::new(text).to_owned();
        if text.contains('/') {
            return Ok(Source::File(path));
        }
        let may_be_a_file = ImageFormat::of_name(&path).is_some();
        match text.parse::<ImageName>() {
            Ok(name) if may_be_a_file => Ok(Source::Either(name, path)),
            Ok(name) => Ok(Source::Image(name)),
            Err(_) if may_be_a_file => Ok(Source::File(path)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn settle(self, engine: &Engine) -> Result<DeploySource, Failure> {
        match self {
            Source::Image(name) => Ok(DeploySource::Image(name)),
            Source::File(path) => Ok(DeploySource::File(path)),
            Source::Volume(volume) => Ok(DeploySource::Volume(volume)),
            Source::Template(machine) => Ok(DeploySource::Template(machine)),
            Source::Either(name, path) => match engine.image(&name) {
                Ok(_) => Ok(DeploySource::Image(name)),
                Err(Error::NotFound { .. }) => Ok(DeploySource::File(path)),
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Deploy {
    /// Makes the machine.
    pub(super) fn run(self, session: &Session) -> Result<(), Failure> {
        let source = match (self.image, self.volume, self.template) {
            (Some(image), None, None) => image,
            (None, Some(volume), None) => Source::Volume(volume),
            (None, None, Some(machine)) => Source::Template(machine),
            _ => {
                return Err(Failure::Usage {
                    message: "deploy takes an IMAGE, --volume VOLUME or --template MACHINE"
                        .to_owned(),
                    hint: "sistemo machine deploy --help".to_owned(),
                });
            }
        };
        let engine = session.engine()?;
        let source = source.settle(&engine)?;
        let start = match (self.no_start, self.no_wait) {
            (true, _) => StartMode::Created,
            (false, true) => StartMode::Started,
            (false, false) => StartMode::Answering,
        };
        let machine = engine.deploy(&machines::Deploy {
            source,
            name: self.name,
            vcpus: self.vcpus,
            memory: self.memory,
            storage: self.storage,
            pool: self.pool,
            attach: self.attach,
            expose: self.expose,
            vmm: self.vmm,
            lifetime: if self.ephemeral {
                Lifetime::Ephemeral
            } else {
                Lifetime::Persistent
            },
            start,
        })?;
        say_what_comes_next(session, start, &machine);
        session.output.one(&machine)
    }
}

/// Tells what to do with a new machine that was started so far.
pub(super) fn say_what_comes_next(session: &Session, start: StartMode, machine: &MachineView) {
    let next = match start {
        StartMode::Created => "start it with `sistemo machine start",
        StartMode::Started => "watch it boot with `sistemo machine logs -f",
        StartMode::Answering => "log in with `sistemo machine ssh",
    };
    session.output.note(&format!("{next} {}`", machine.name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_slash_is_a_file_and_one_with_an_ending_may_be() {
        let image = |name: &str| name.parse::<ImageName>().unwrap();
        for (text, source) in [
            ("debian", Source::Image(image("debian"))),
            ("debian-12.1", Source::Image(image("debian-12.1"))),
            ("./disk", Source::File("./disk".into())),
            ("/srv/disk.raw", Source::File("/srv/disk.raw".into())),
            (
                "disk.qcow2",
                Source::Either(image("disk.qcow2"), "disk.qcow2".into()),
            ),
            ("my disk.img", Source::File("my disk.img".into())),
        ] {
            assert_eq!(Source::parse(text), Ok(source));
        }
        assert!(Source::parse("my disk").unwrap_err().contains("`my disk`"));
        assert!(Source::parse("").unwrap_err().contains("empty"));
    }
}
