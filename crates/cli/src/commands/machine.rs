//! `sistemo machine …`, also called `sistemo vm …`

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::Style;
use clap::{Args, Subcommand};
use serde::Serialize;
use sistemo::causes;
use sistemo::machines::{MachineView, StopRequest, Storage, TemplateView, Wait};
use sistemo::model::{Access, Bytes, MachineName, Reference, Timestamp};
use sistemo::{Changed, Engine, Error, Kind};

use super::volume::{restorable, with_snapshots};
use crate::arguments::{reference, value};
use crate::confirmation::Beforehand;
use crate::failure::Failure;
use crate::output::details::Details;

use crate::output::table::{Cell, Column, Table};
use crate::output::{Described, GOOD, NOTABLE, PLAIN, Shown};
use crate::session::Session;

mod changes;
mod clone;
mod console;
mod deploy;
mod logs;
mod remote;
mod snapshot;

pub(crate) use remote::Remote;

/// The longest that a guest can be given to power itself off, in seconds.
const DAY: u64 = 24 * 60 * 60;

/// A verb for machines.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a machine, start it, and wait until it answers
    ///
    /// The machine gets a root volume named MACHINE-root. It answers when it lets the product's
    /// own SSH key in. With --template its root volume is a clone of another machine's, made at
    /// each start and thrown away at each stop; with --ephemeral the whole machine is.
    #[command(after_help = deploy::EXAMPLES)]
    Deploy(deploy::Deploy),
    /// List machines
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a machine
    #[command(visible_alias = "show")]
    Status(Named),
    /// Start a machine and wait until it answers
    Start(Start),
    /// Stop a machine, gracefully and then forced
    ///
    /// The guest is asked to power itself off; one that does not in time is ended.
    #[command(after_help = "\
Examples:
  sistemo machine stop db1
  sistemo machine stop db1 --timeout 10
  sistemo machine stop db1 --force")]
    Stop(Stop),
    /// Stop a machine, start it again, and wait until it answers
    Restart(Restart),
    /// Hold a machine's processors; its memory is kept
    Pause(Named),
    /// Let a paused machine go on
    Resume(Named),
    /// Keep all volumes of a machine as they are at one point in time
    ///
    /// A running machine is paused for that instant; where the QEMU guest agent runs in it, its
    /// filesystems are frozen first, and so are clean. Volumes of a pool that has to copy are
    /// copied while the machine runs on.
    #[command(after_help = snapshot::EXAMPLES)]
    Snapshot(snapshot::Snapshot),
    /// Change what a machine is made of; it must be stopped, except for autostart
    #[command(after_help = "\
Keys:
  vcpus=NUMBER           virtual processors, 1 to 255
  memory=SIZE            memory, such as 512M or 2G
  autostart=true|false   whether it starts when the host does

Examples:
  sistemo machine set db1 vcpus=4 memory=1G
  sistemo machine set db1 autostart=true")]
    Set(changes::Set),
    /// Give a stopped machine another name
    Rename {
        /// The machine's name, ID, or the first 8 or more characters of its ID
        #[arg(value_name = "MACHINE", value_parser = reference)]
        machine: Reference,
        /// Its new name, which is its host name too
        #[arg(value_name = "NEW", value_parser = value::<MachineName>)]
        name: MachineName,
    },
    /// Delete machines; volumes that deploy did not make stay
    ///
    /// A running machine is stopped first. The root volume goes with the machine where deploy
    /// made it, unless --preserve-storage is given: to the trash, as long as its pool keeps one.
    /// All other volumes always stay.
    #[command(
        visible_alias = "rm",
        after_help = "\
Examples:
  sistemo machine delete db1
  sistemo machine delete db1 --preserve-storage
  sistemo machine deploy --volume db1-root --name db2     # boots the preserved root"
    )]
    Delete(Delete),
    /// Make a machine with clones of all volumes of another
    ///
    /// The clone has an identity of its own: ID and machine-id, host name, SSH host keys, MAC
    /// address and SSH port. The machine must be stopped, unless a snapshot is cloned that each
    /// of its volumes has. The clone is not started, unless --start is given.
    #[command(after_help = "\
Examples:
  sistemo machine clone db1 db2
  sistemo machine clone db1 db2 --snapshot before-upgrade --start
  sistemo machine clone web web2 -P fast --expose 8081:80")]
    Clone(clone::Clone),
    /// Open a shell on a machine over SSH, or run a command there as ssh does
    ///
    /// Everything after the machine belongs to the command. The exit status is that of ssh(1).
    #[command(
        override_usage = "sistemo machine ssh [OPTIONS] <MACHINE> [-- COMMAND...]",
        after_help = "\
Examples:
  sistemo machine ssh db1
  sistemo machine ssh db1 -- systemctl status ssh"
    )]
    Ssh(Remote),
    /// Run a command on a machine, each argument as given
    ///
    /// Everything after the machine belongs to the command. Each argument arrives in the guest as it is.
    #[command(
        override_usage = "sistemo machine exec [OPTIONS] <MACHINE> [--] <COMMAND>...",
        after_help = "\
Exit status: that of the command, or 125 when it could not be run.

Examples:
  sistemo machine exec db1 lsblk
  sistemo machine exec db1 -- sh -c 'df -h | tail -n 3'"
    )]
    Exec(Remote),
    /// Print what a machine wrote to its console
    #[command(after_help = "\
Examples:
  sistemo machine logs db1
  sistemo machine logs db1 -f")]
    Logs(logs::Logs),
    /// Use a machine's console; Ctrl-] leaves it
    Console(Named),
    /// Attach and detach volumes
    #[command(subcommand, arg_required_else_help = true)]
    Volume(VolumeCommand),
    /// Start the machines that start with the host; for the system's service manager
    #[command(hide = true)]
    Autostart,
    /// Stop all machines, for a host that goes down
    #[command(hide = true)]
    Autostop {
        #[command(flatten)]
        patience: Patience,
    },
}

/// A verb for the volumes of a machine.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Attach a volume to a stopped machine
    #[command(after_help = "\
Examples:
  sistemo machine volume attach db1 pgdata
  sistemo machine volume attach db1 reference --read-only")]
    Attach {
        /// The machine
        #[arg(value_parser = reference)]
        machine: Reference,
        /// The volume
        #[arg(value_parser = reference)]
        volume: Reference,
        /// Let the machine read the volume only
        #[arg(long)]
        read_only: bool,
    },
    /// Detach a volume from a stopped machine
    #[command(after_help = "\
Example:
  sistemo machine volume detach db1 pgdata")]
    Detach {
        /// The machine
        #[arg(value_parser = reference)]
        machine: Reference,
        /// The volume
        #[arg(value_parser = reference)]
        volume: Reference,
    },
}

/// A machine and nothing else.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The machine's name, ID, or the first 8 or more characters of its ID
    #[arg(value_parser = reference)]
    machine: Reference,
}

/// Whether to wait for a started machine.
#[derive(Clone, Copy, Debug, Args)]
struct Waiting {
    /// Return as soon as it runs, without waiting until it answers
    #[arg(long)]
    no_wait: bool,
}

impl Waiting {
    fn wait(self) -> Wait {
        if self.no_wait {
            Wait::No
        } else {
            Wait::UntilAnswering
        }
    }
}

/// How a machine is stopped.
#[derive(Clone, Copy, Debug, Args)]
struct Stopping {
    /// End it at once, as pulling the plug would
    #[arg(long, conflicts_with = "timeout")]
    force: bool,
    #[command(flatten)]
    patience: Patience,
}

/// How long a guest has to power itself off.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Patience {
    /// Seconds the guest has to power itself off [default: the setting `stop_timeout`, 90]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = seconds,
        allow_hyphen_values = true
    )]
    timeout: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=DAY) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "`{text}` is not a number of seconds between 1 and {DAY}"
        )),
    }
}

impl Patience {
    fn request(self, engine: &Engine) -> StopRequest {
        let configured = engine.settings().stop_timeout.value;
        StopRequest::Graceful {
            timeout: self.timeout.unwrap_or(configured),
        }
    }
}

impl Stopping {
    fn request(self, engine: &Engine) -> StopRequest {
        if self.force {
            StopRequest::Forced
        } else {
            self.patience.request(engine)
        }
    }
}

/// What `machine start` takes.
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    waiting: Waiting,
}

/// What `machine stop` takes.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    stopping: Stopping,
}

/// What `machine restart` takes.
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    stopping: Stopping,
    #[command(flatten)]
    waiting: Waiting,
}

/// What `machine delete` takes.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The machines' names or IDs
    #[arg(value_name = "MACHINE", value_parser = reference, required = true)]
    machines: Vec<Reference>,
    /// Keep the root volume too; nothing is lost, so nothing is asked
    #[arg(long)]
    preserve_storage: bool,
    /// Destroy the root volume at once, instead of moving it to the trash
    #[arg(long, conflicts_with = "preserve_storage")]
    purge: bool,
    #[command(flatten)]
    beforehand: Beforehand,
}

/// What programs are told of a machine that was deleted.
#[derive(Debug, Serialize)]
struct Deleted {
    #[serde(flatten)]
    machine: MachineView,
    /// Until when the root volume that went with it can be restored.
    restorable_until: Option<Timestamp>,
}

impl Command {
    /// Runs the command; the code is the guest command's for `ssh` and `exec`.
    pub(crate) fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let output = session.output;
        let engine = || session.engine();
        match self {
            Command::Ssh(remote) => return remote.open_shell(session),
            Command::Exec(remote) => return remote.execute(session),
            Command::Deploy(deploy) => deploy.run(session)?,
            Command::List => output.list(
                &engine()?.machines()?,
                "no machines yet; make one with `sistemo machine deploy debian`",
            )?,
            Command::Status(Named { machine }) => output.details(&engine()?.machine(&machine)?)?,
            Command::Start(Start { named, waiting }) => {
                let started = engine()?.start_machine(&named.machine, waiting.wait())?;
                show_change(session, &started, "is already running")?;
            }
            Command::Stop(Stop { named, stopping }) => {
                let engine = engine()?;
                let stopped = engine.stop_machine(&named.machine, stopping.request(&engine))?;
                show_change(session, &stopped, "is already stopped")?;
            }
            Command::Restart(Restart {
                named,
                stopping,
                waiting,
            }) => {
                let engine = engine()?;
                let (how, wait) = (stopping.request(&engine), waiting.wait());
                output.one(&engine.restart_machine(&named.machine, how, wait)?)?;
            }
            Command::Snapshot(snapshot) => snapshot.run(session)?,
            Command::Pause(Named { machine }) => {
                show_change(
                    session,
                    &engine()?.pause_machine(&machine)?,
                    "is already paused",
                )?;
            }
            Command::Resume(Named { machine }) => {
                show_change(
                    session,
                    &engine()?.resume_machine(&machine)?,
                    "is already running",
                )?;
            }
            Command::Set(set) => output.one(&set.apply(session)?)?,
            Command::Rename { machine, name } => {
                output.one(&engine()?.rename_machine(&machine, &name)?)?;
            }
            Command::Delete(delete) => delete.run(&engine()?, session)?,
            Command::Clone(clone) => clone.run(&engine()?, session)?,
            Command::Logs(logs) => logs.run(&engine()?, session)?,
            Command::Console(Named { machine }) => console::run(&machine, session)?,
            Command::Volume(VolumeCommand::Attach {
                machine,
                volume,
                read_only,
            }) => {
                let access = if read_only {
                    Access::ReadOnly
                } else {
                    Access::ReadWrite
                };
                output.one(&engine()?.attach_volume(&machine, &volume, access)?)?;
            }
            Command::Volume(VolumeCommand::Detach { machine, volume }) => {
                output.one(&engine()?.detach_volume(&machine, &volume)?)?;
            }
            Command::Autostart => show_several(session, "start", engine()?.autostart()?)?,
            Command::Autostop { patience } => {
                let engine = engine()?;
                show_several(session, "stop", engine.stop_all(patience.request(&engine))?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows a machine; where it was so already, says that.
fn show_change(
    session: &Session,
    (machine, changed): &(MachineView, Changed),
    already: &str,
) -> Result<(), Failure> {
    if *changed == Changed::No {
        session
            .output
            .note(&format!("machine {} {already}", machine.name));
    }
    session.output.one(machine)
}

/// Shows the machines that did as they were told, and fails where one did not.
fn show_several(
    session: &Session,
    action: &'static str,
    outcomes: Vec<(MachineName, sistemo::Result<MachineView>)>,
) -> Result<(), Failure> {
    let mut machines = Vec::new();
    let mut failed = Vec::new();
    for (name, outcome) in outcomes {
        match outcome {
            Ok(machine) => machines.push(machine),
            Err(error) => failed.push(failure_of(&name, &error)),
        }
    }
    session
        .output
        .list(&machines, &format!("no machine to {action}"))?;
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::Several { action, failed })
    }
}

fn failure_of(name: &MachineName, error: &Error) -> String {
    format!("{name} ({})", causes(error).join(": "))
}

impl Delete {
    fn run(self, engine: &Engine, session: &Session) -> Result<(), Failure> {
        let storage = if self.preserve_storage {
            Storage::Preserve
        } else if self.purge {
            Storage::DestroyRoot
        } else {
            Storage::RemoveRoot
        };
        let mut seen = HashSet::new();
        let (mut lost, mut until) = (Vec::new(), Vec::new());
        // By ID from here on: a name may belong to something else when the answer comes.
        let mut confirmed = Vec::new();
        for reference in &self.machines {
            let deletion = engine.deletion(reference, storage)?;
            let name = &deletion.machine.name;
            if !seen.insert(deletion.machine.id) {
                return Err(Failure::Repeated {
                    kind: Kind::Machine,
                    name: name.to_string(),
                });
            }
            confirmed.push(Reference::from(deletion.machine.id.to_string()));
            if let Some(root) = deletion.removes {
                let root = with_snapshots(engine, &root);
                lost.push(format!("machine {name} and its root volume {root}"));
                // The machine itself does not come back.
                until.push(deletion.restorable_until);
            }
        }
        self.beforehand.confirm_roots(&lost, &until)?;
        let mut deleted = Vec::new();
        let outcome = confirmed.iter().try_for_each(|reference| {
            let deletion = engine.delete_machine(reference, storage)?;
            let mut told = format!("deleted machine {}", deletion.machine.name);
            if let Some(root) = &deletion.removes {
                let until = deletion.restorable_until;
                let restorable = restorable(engine, root, until);
                told = format!("{told} and its root volume {}{restorable}", root.name);
            }
            if !deletion.keeps.is_empty() {
                let kept: Vec<_> = deletion.keeps.iter().map(ToString::to_string).collect();
                told = format!("{told}; kept {}", kept.join(", "));
            }
            session.output.note(&told);
            deleted.push(Deleted {
                machine: deletion.machine,
                restorable_until: deletion.restorable_until,
            });
            Ok(())
        });
        // What is gone is told also where a later one could not be deleted.
        session.output.deleted(&deleted)?;
        outcome
    }
}

fn style(status: &str) -> Style {
    match status {
        "running" => GOOD,
        "starting" | "paused" | "stopping" => NOTABLE,
        _ => PLAIN,
    }
}

/// The status with why or how: `paused (disk-full)`, `stopped (crashed)`.
fn status(machine: &MachineView) -> String {
    let why = machine.paused_why.map(|why| why.to_string());
    let how = machine.stopped_how.map(|how| how.to_string());
    match why.or(how) {
        Some(reason) => format!("{} ({reason})", machine.status),
        None => machine.status.to_owned(),
    }
}

/// What a machine's root volume is made from: `work (work-root)`.
fn template(template: &TemplateView) -> String {
    match &template.machine {
        Some(machine) => format!("{machine} ({})", template.volume),
        None => template.volume.to_string(),
    }
}

impl Shown for MachineView {
    fn table(machines: &[MachineView]) -> Table {
        let columns = [
            "NAME", "STATUS", "IMAGE", "VCPUS", "MEMORY", "SSH", "VOLUMES",
        ];
        let mut all = vec![Column::at_least("ID", 36)];
        all.extend(columns.map(Column::new));
        let mut table = Table::new(all);
        for machine in machines {
            let names = machine.volumes.iter().map(|volume| volume.name.to_string());
            let volumes = names.collect::<Vec<_>>().join(",");
            table.row(vec![
                Cell::new(machine.id),
                Cell::new(&machine.name),
                Cell::styled(status(machine), style(machine.status)),
                Cell::maybe(machine.image.as_ref()),
                Cell::new(machine.vcpus),
                Cell::new(Bytes::from_mib(machine.memory_mb)),
                Cell::new(format!("{}:{}", machine.ssh.host, machine.ssh.port)),
                Cell::maybe(Some(volumes).filter(|volumes| !volumes.is_empty())),
            ]);
        }
        table
    }
}

impl Described for MachineView {
    fn details(&self) -> Details {
        let mut details = Details::default();
        details.line("Name", &self.name);
        details.line("ID", self.id);
        details.styled("Status", status(self), style(self.status));
        details.maybe("Image", self.image.as_ref());
        details.line("vCPUs", self.vcpus);
        details.line("Memory", Bytes::from_mib(self.memory_mb));
        let accelerator = self
            .accel
            .map(|accel| format!(" ({accel})"))
            .unwrap_or_default();
        details.line("VMM", format!("{}{accelerator}", self.vmm));
        details.if_any("PID", self.pid);
        details.maybe("Root volume", self.root_volume.as_ref());
        details.several(
            "Volumes",
            self.volumes.iter().map(|volume| {
                let read_only = if volume.read_only { " (read-only)" } else { "" };
                format!("{} {}{read_only}", volume.device, volume.name)
            }),
        );
        details.line("SSH", format!("{}:{}", self.ssh.host, self.ssh.port));
        let exposed = self
            .exposed
            .iter()
            .map(|port| format!("{} -> {}", port.host, port.guest));
        details.several("Exposed", exposed);
        details.line("Network", format!("{} ({})", self.network, self.mac));
        details.line("Autostart", if self.autostart { "yes" } else { "no" });
        details.if_any("Template", self.template.as_ref().map(template));
        details.if_any("Ephemeral", self.ephemeral.then_some("yes"));
        details.line("Created", format!("{:.0}", self.created));
        details.line("Modified", format!("{:.0}", self.modified));
        details
    }
}
