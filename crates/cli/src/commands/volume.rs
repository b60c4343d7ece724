//! `sistemo volume …`

mod care;
mod clone;
mod exchange;
mod moves;
mod set;
mod snapshot;
mod trash;

use std::collections::HashSet;
use std::process::ExitCode;

use anstyle::Style;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use sistemo::history::OriginView;
use sistemo::model::{Bytes, Filesystem, PoolName, Reference, Timestamp, VolumeName};
use sistemo::snapshots::VolumeDetails;
use sistemo::volumes::{Grow, NewVolume, VolumeStatus, VolumeView};
use sistemo::{Engine, Error, Kind};

use crate::arguments::{reference, size, value};
use crate::confirmation::Beforehand;
use crate::failure::Failure;
use crate::output::details::Details;
use crate::output::table::{Cell, Column, Table};
use crate::output::{BAD, Described, GOOD, PLAIN, Shown};
use crate::session::Session;

/// A verb for volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a volume
    ///
    /// The volume takes space on the host only as data is written to it.
    #[command(
        visible_alias = "add",
        after_help = "\
Sizes: 512M, 1.5G, 5G, 10GB, 2T; a bare number is MB. Units are binary: 5G is 5 GiB.

Examples:
  sistemo volume create 5G --name pgdata
  sistemo volume create 100G --name media --fs xfs
  sistemo volume create 1G --name raw --fs none"
    )]
    Create(Create),
    /// List volumes
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a volume
    Show {
        /// The volume's name, ID, or the first 8 or more characters of its ID
        #[arg(value_name = "VOLUME", value_parser = reference)]
        volume: Reference,
    },
    /// Grow a volume
    ///
    /// The machine that holds the volume must be stopped. The block device grows; its filesystem
    /// is then grown in the guest, for ext4 with `resize2fs /dev/vdb`, or here with --grow-fs.
    /// Volumes never shrink.
    #[command(after_help = "\
Examples:
  sistemo volume resize pgdata 10GB
  sistemo volume resize pgdata 10GB --grow-fs")]
    Resize(Resize),
    /// Give a volume another name
    ///
    /// The machine that holds the volume must be stopped.
    #[command(after_help = "\
Example:
  sistemo volume rename pgdata pgdata-2026")]
    Rename {
        /// The volume's name, ID, or the first 8 or more characters of its ID
        #[arg(value_name = "VOLUME", value_parser = reference)]
        volume: Reference,
        /// Its new name
        #[arg(value_name = "NEW", value_parser = value::<VolumeName>)]
        name: VolumeName,
    },
    /// Change what is kept of a volume
    ///
    /// Each clean stop of the machine that holds the volume leaves a revision of it; older ones
    /// beyond the number go. What was asked for or pinned stays.
    #[command(after_help = "\
Examples:
  sistemo volume set pgdata revisions_to_keep=3
  sistemo volume set pgdata revisions_to_keep=default")]
    Set(set::Set),
    /// Delete volumes and all that is on them
    ///
    /// Each goes to the trash with its snapshots, as long as its pool keeps one, and can be
    /// restored from there. Either all of them can be deleted, or none is. A volume that a machine
    /// holds cannot, nor one with a pinned snapshot.
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  sistemo volume delete pgdata
  sistemo volume delete scratch1 scratch2 -y
  sistemo volume delete secrets --purge"
    )]
    Delete(Delete),
    /// Restore deleted volumes, or destroy them
    #[command(subcommand, arg_required_else_help = true)]
    Trash(trash::Command),
    /// Make a volume that holds what another does
    ///
    /// Each then goes its own way. Where the pool can share what they have in common, a clone takes
    /// milliseconds and no room; elsewhere the data is copied, without its holes. The machine
    /// that holds the volume must be stopped, unless a snapshot is cloned.
    #[command(after_help = "\
Examples:
  sistemo volume clone pgdata pgdata-test
  sistemo volume clone pgdata pgdata-test --snapshot before-upgrade
  sistemo volume clone pgdata archive -P slow")]
    Clone(clone::Clone),
    /// Move a volume to another pool
    ///
    /// It keeps its ID, its name and its snapshots, and stays attached. The machine that holds it
    /// must be stopped. All of it is copied and compared before it goes from where it was.
    #[command(after_help = "\
Examples:
  sistemo volume move pgdata -P fast
  sistemo volume move archive -P ceph --without-snapshots")]
    Move(moves::Move),
    /// Keep volumes as they were
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::Command),
    /// Take a volume back to a snapshot
    ///
    /// The machine that holds the volume must be stopped. What the volume holds now is kept as one
    /// more snapshot, unless --discard is given; its other snapshots stay. Its size goes back too.
    #[command(after_help = "\
Examples:
  sistemo volume revert pgdata
  sistemo volume revert pgdata before-upgrade
  sistemo volume revert pgdata before-upgrade --discard -y")]
    Revert(snapshot::Revert),
    /// Write a volume to a file
    ///
    /// The file takes room only for the volume's data; it appears when it is whole. How it is
    /// written, its name tells: .raw, .img, .qcow2, .vmdk, .vhdx or .vdi. The machine that holds
    /// the volume must be stopped, unless a snapshot is exported.
    #[command(after_help = "\
Examples:
  sistemo volume export pgdata pgdata.qcow2
  sistemo volume export pgdata backup --format vmdk --checksum
  sistemo volume export pgdata - --snapshot before-upgrade | zstd > pgdata.zst")]
    Export(exchange::Export),
    /// Make a volume of a file
    ///
    /// Its size is the disk's. How the file is stored, its name tells, and the beginning of a
    /// file that is not raw must confirm it. A file that needs other files is refused: it would
    /// read any of this host's. What a raw file holds is not looked at.
    #[command(after_help = "\
Examples:
  sistemo volume import pgdata.qcow2 --name pgdata --fs ext4
  sistemo volume import disk.vmdk --name old-server -P fast
  zstdcat pgdata.zst | sistemo volume import - --name pgdata2")]
    Import(exchange::Import),
    /// Look for damage to a volume, and mend it with --repair
    ///
    /// Looks at what the pool keeps the volume in, and at the filesystem on it, with the host's own
    /// tools and without mounting anything. The machine that holds the volume must be stopped.
    /// With --repair the volume is kept as a snapshot first, where that is instant.
    #[command(after_help = "\
Exit status: 0 when there is no problem, or none any more, else 1.

Examples:
  sistemo volume check pgdata
  sistemo volume check pgdata --repair")]
    Check(care::Check),
    /// Give a volume's unused blocks back to the host
    ///
    /// Those that its filesystem does not use, and those that hold only zeros. What files hold
    /// stays as it is. The machine that holds the volume must be stopped.
    #[command(after_help = "\
Example:
  sistemo volume trim pgdata")]
    Trim(care::Trim),
    /// Show what volumes take on the host
    ///
    /// USED is what a volume takes; SHARED what snapshots or other volumes use too; ALONE what
    /// would be free without it; SNAPSHOTS what its snapshots use alone. What a pool cannot tell
    /// is shown as —.
    #[command(after_help = "\
Examples:
  sistemo volume usage
  sistemo volume usage pgdata -o json")]
    Usage(care::Usage),
}

/// What `volume create` takes.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// How large it is, such as 512M, 5G or 2T
    #[arg(value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    size: Bytes,
    /// Its name; without one, the first 8 characters of its ID
    #[arg(long, value_parser = value::<VolumeName>, allow_hyphen_values = true)]
    name: Option<VolumeName>,
    /// The pool to make it in
    #[arg(short = 'P', long, value_parser = value::<PoolName>, allow_hyphen_values = true)]
    pool: Option<PoolName>,
    /// What to format it with; none makes a bare block device
    #[arg(long, value_name = "FS", value_parser = filesystems(), default_value = "ext4")]
    fs: Filesystem,
}

/// What `volume resize` takes.
#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// The volume's name, ID, or the first 8 or more characters of its ID
    #[arg(value_name = "VOLUME", value_parser = reference)]
    volume: Reference,
    /// How large it is to become
    #[arg(value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    size: Bytes,
    /// Grow the filesystem too: a clean ext4 on the bare volume
    #[arg(long)]
    grow_fs: bool,
}

/// What `volume delete` takes.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The volumes' names or IDs
    #[arg(value_name = "VOLUME", value_parser = reference, required = true)]
    volumes: Vec<Reference>,
    /// Destroy them at once, instead of moving them to the trash
    #[arg(long)]
    purge: bool,
    #[command(flatten)]
    beforehand: Beforehand,
}

fn filesystems() -> impl TypedValueParser<Value = Filesystem> {
    PossibleValuesParser::new(Filesystem::ALL.map(Filesystem::as_str))
        .try_map(|word| word.parse::<Filesystem>())
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let engine = session.engine()?;
        let output = session.output;
        match self {
            Command::Create(Create {
                size,
                name,
                pool,
                fs,
            }) => {
                let new = NewVolume {
                    size,
                    name,
                    pool,
                    filesystem: fs,
                };
                output.one(&engine.create_volume(new)?)
            }
            Command::List => output.list(
                &engine.volumes()?,
                "no volumes yet; make one with `sistemo volume create 5G --name NAME`",
            ),
            Command::Show { volume } => output.details(&engine.volume_details(&volume)?),
            Command::Resize(resize) => resize.run(&engine, session),
            Command::Rename { volume, name } => output.one(&engine.rename_volume(&volume, name)?),
            Command::Set(set) => set.run(&engine, session),
            Command::Delete(delete) => delete.run(&engine, session),
            Command::Trash(command) => command.run(&engine, session),
            Command::Clone(clone) => clone.run(&engine, session),
            Command::Move(moves) => moves.run(&engine, session),
            Command::Snapshot(command) => command.run(&engine, session),
            Command::Revert(revert) => revert.run(&engine, session),
            Command::Export(export) => export.run(&engine, session),
            Command::Import(import) => import.run(&engine, session),
            Command::Check(check) => return check.run(&engine, session),
            Command::Trim(trim) => trim.run(&engine, session),
            Command::Usage(usage) => usage.run(&engine, session),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Resize {
    fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let what = if self.grow_fs {
            Grow::DeviceAndFilesystem
        } else {
            Grow::Device
        };
        let volume = engine.resize_volume(&self.volume, self.size, what)?;
        let left_to_the_guest = !self.grow_fs && volume.fs == Filesystem::Ext4;
        if left_to_the_guest && let Some(device) = &volume.device {
            session.output.note(&format!(
                "the filesystem is grown in the guest: start it, then `resize2fs {device}`"
            ));
        }
        session.output.one(&volume)
    }
}

impl Delete {
    fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let mut seen = HashSet::new();
        let (mut lost, mut until) = (Vec::new(), Vec::new());
        // By ID from here on: a name may belong to something else when the answer comes.
        let mut confirmed = Vec::new();
        for reference in &self.volumes {
            let volume = engine.check_volume_deletable(reference)?;
            if !seen.insert(volume.id) {
                return Err(Failure::Repeated {
                    kind: Kind::Volume,
                    name: volume.name.to_string(),
                });
            }
            confirmed.push(Reference::from(volume.id.to_string()));
            lost.push(format!("volume {}", with_snapshots(engine, &volume)));
            until.push(if self.purge {
                None
            } else {
                engine.restorable_until(&volume.pool)?
            });
        }
        self.beforehand.confirm_restorable(&lost, &until)?;
        let mut deleted = Vec::new();
        let outcome = confirmed.iter().try_for_each(|reference| {
            let gone = if self.purge {
                engine.destroy_volume(reference)?
            } else {
                engine.delete_volume(reference)?
            };
            session.output.note(&format!(
                "deleted volume {}{}",
                gone.volume.name,
                restorable(engine, &gone.volume, gone.restorable_until)
            ));
            deleted.push(gone);
            Ok(())
        });
        // What is gone is told also where a later one could not be deleted.
        session.output.deleted(&deleted)?;
        outcome
    }
}

/// How a deleted volume comes back, where it can: by its name, unless others in the trash have it.
pub(super) fn restorable(engine: &Engine, volume: &VolumeView, until: Option<Timestamp>) -> String {
    let Some(until) = until else {
        return String::new();
    };
    let name = volume.name.to_string();
    let reference = match engine.trashed_volume(&Reference::from(name.clone())) {
        Err(Error::Ambiguous { .. }) => volume.id.to_string(),
        _ => name,
    };
    format!("; until {until:.0} `sistemo volume trash restore {reference}` brings it back")
}

/// A volume that would be lost, with its size and how many snapshots go with it.
pub(super) fn with_snapshots(engine: &Engine, volume: &VolumeView) -> String {
    let shown = format!("{} ({})", volume.name, Bytes::new(volume.size_bytes));
    // A pool that keeps none, or cannot be asked, takes none along.
    let reference = Reference::from(volume.id.to_string());
    match engine.snapshots(&reference).map_or(0, |there| there.len()) {
        0 => shown,
        1 => format!("{shown} with its snapshot"),
        several => format!("{shown} with its {several} snapshots"),
    }
}

fn style(status: VolumeStatus) -> Style {
    match status {
        VolumeStatus::Attached => GOOD,
        VolumeStatus::Available => PLAIN,
        VolumeStatus::Error => BAD,
    }
}

impl Shown for VolumeView {
    fn table(volumes: &[VolumeView]) -> Table {
        let pools: HashSet<&PoolName> = volumes.iter().map(|volume| &volume.pool).collect();
        let several_pools = pools.len() > 1;
        let mut columns = vec![
            Column::at_least("ID", 36),
            Column::at_least("NAME", 14),
            Column::at_least("SIZE", 5),
            Column::at_least("STATUS", 9),
        ];
        if several_pools {
            columns.push(Column::new("POOL"));
        }
        columns.push(Column::new("ATTACHED TO"));
        let mut table = Table::new(columns);
        for volume in volumes {
            let mut cells = vec![
                Cell::new(volume.id),
                Cell::new(&volume.name),
                Cell::new(Bytes::new(volume.size_bytes)),
                Cell::styled(volume.status.as_str(), style(volume.status)),
            ];
            if several_pools {
                cells.push(Cell::new(&volume.pool));
            }
            cells.push(Cell::maybe(volume.attached_to.as_ref()));
            table.row(cells);
        }
        table
    }
}

fn revisions_line(number: u32, set_by: &str) -> String {
    match set_by {
        "pool" => format!("{number} (as its pool says)"),
        _ => number.to_string(),
    }
}

fn origin_line(origin: &OriginView, outdated: Option<bool>) -> String {
    let source = origin.volume.as_ref();
    let source = source.map_or_else(|| origin.volume_id.to_string(), ToString::to_string);
    let state = match outdated {
        Some(true) => "outdated",
        Some(false) => "up to date",
        None => "which is gone",
    };
    format!("{source} as of {:.0} ({state})", origin.as_of)
}

impl Described for VolumeDetails {
    fn details(&self) -> Details {
        let mut details = Details::default();
        let volume = &self.volume;
        details.line("Name", &volume.name);
        details.line("ID", volume.id);
        details.line("Size", Bytes::new(volume.size_bytes));
        details.maybe("Used on disk", volume.used_bytes.map(Bytes::new));
        details.styled("Status", volume.status.as_str(), style(volume.status));
        details.if_any("Reason", volume.reason.as_ref());
        details.line("Role", volume.role);
        details.line("Filesystem", volume.fs);
        details.line("Pool", &volume.pool);
        details.maybe("Driver", volume.driver.as_ref());
        details.maybe("Format", volume.format.as_ref());
        details.maybe("Path", volume.path.as_ref().map(|path| path.display()));
        details.maybe("Attached to", volume.attached_to.as_ref());
        details.if_any("Device", volume.device.as_ref());
        details.if_any("Made anew from", volume.template.as_ref());
        let past = &self.past;
        if let Some(origin) = &past.origin {
            details.line("Cloned from", origin_line(origin, past.outdated));
        }
        if past.dirty {
            details.line("Dirty", "yes: its machine did not stop cleanly");
        }
        details.maybe(
            "Revisions to keep",
            past.revisions_to_keep
                .map(|number| revisions_line(number, past.revisions_set_by)),
        );
        let snapshots = self.snapshots.iter().flatten();
        details.several("Snapshots", snapshots.map(snapshot::line));
        details.line("Created", format!("{:.0}", volume.created));
        details.line("Modified", format!("{:.0}", volume.modified));
        details
    }
}

#[cfg(test)]
mod tests {
    use sistemo::model::{MachineId, Role, Timestamp, VolumeId};

    use super::*;

    fn volume(id: &str, name: &str, gib: u64, machine: Option<&str>) -> VolumeView {
        let status = if machine.is_some() {
            VolumeStatus::Attached
        } else {
            VolumeStatus::Available
        };
        VolumeView {
            id: id.parse::<VolumeId>().unwrap(),
            name: name.parse().unwrap(),
            size_bytes: gib << 30,
            size_mb: gib << 10,
            used_bytes: Some(2 << 20),
            status,
            reason: None,
            role: Role::Data,
            pool: PoolName::default_pool(),
            driver: Some("file".to_owned()),
            format: Some("raw".to_owned()),
            fs: Filesystem::Ext4,
            path: None,
            machine_id: machine.map(|_| MachineId::random()),
            attached_to: machine.map(|name| name.parse().unwrap()),
            device: machine.map(|_| "/dev/vdb".to_owned()),
            template: None,
            created: Timestamp::UNIX_EPOCH,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    fn two() -> [VolumeView; 2] {
        [
            volume(
                "a1b2c3d4-5678-9abc-def0-123456789abc",
                "pgdata",
                5,
                Some("webserver"),
            ),
            volume(
                "b2c3d4e5-6789-abcd-ef01-23456789abcd",
                "redis-data",
                1,
                None,
            ),
        ]
    }

    fn plain(table: &Table) -> String {
        anstream::adapter::strip_str(&table.to_string()).to_string()
    }

    #[test]
    fn the_list_looks_as_specified() {
        let expected = "\
ID                                    NAME            SIZE   STATUS     ATTACHED TO
a1b2c3d4-5678-9abc-def0-123456789abc  pgdata          5 GB   attached   webserver
b2c3d4e5-6789-abcd-ef01-23456789abcd  redis-data      1 GB   available  —
";
        assert_eq!(plain(&VolumeView::table(&two())), expected);
    }

    #[test]
    fn a_pool_column_joins_where_more_than_one_holds_volumes() {
        let mut volumes = two();
        volumes[1].pool = "fast".parse().unwrap();
        let shown = plain(&VolumeView::table(&volumes));
        assert!(shown.contains("  POOL     ATTACHED TO\n"), "{shown}");
        assert!(shown.contains("  fast     —\n"), "{shown}");
    }
}
