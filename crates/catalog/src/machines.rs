//! The records of machines, and the process that runs each.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Params, ToSql};
use sistemo_host::process::ProcessIdentity;
use sistemo_model::{
    Accelerator, Bytes, Exposure, Lifecycle, Lifetime, Machine, MachineId, MachineName,
    MachineState, Reference, Timestamp, UnknownWord, VcpuCount,
};

use crate::connection::{Session, Transaction};
use crate::error::{CatalogError, Kind, Result};
use crate::objects::expect_lifecycle;
use crate::rows::Columns;

/// The process that runs a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningProcess {
    /// The VMM.
    pub process: ProcessIdentity,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
}

impl Session<'_> {
    /// The machines that are ready, ordered by name.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn machines(&self) -> Result<Vec<Machine>> {
        self.select_machines("WHERE lifecycle = 'ready' ORDER BY name", (), None)
    }

    /// All machines, also those being made or removed, ordered by name.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn all_machines(&self) -> Result<Vec<Machine>> {
        self.select_machines("ORDER BY name", (), None)
    }

    /// The machine with this ID, in whatever stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn machine(&self, id: MachineId) -> Result<Machine> {
        let key = id.to_string();
        self.select_machines("WHERE id = ?1", [&key], Some(&key))?
            .pop()
            .ok_or_else(|| CatalogError::no_such(Kind::Machine, &id))
    }

    /// The ready machine that a user means: by name, full ID or the beginning of an ID, in that
    /// order.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::Ambiguous`].
    pub fn find_machine(&self, reference: &Reference) -> Result<Machine> {
        let id = self.find(Kind::Machine, reference)?;
        self.select_machines("WHERE id = ?1", [&id], Some(&id))?
            .pop()
            .ok_or_else(|| CatalogError::no_such(Kind::Machine, reference))
    }

    /// The machines that are gone when they stop, and are not recorded as stopped.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn active_ephemeral(&self) -> Result<Vec<MachineId>> {
        let sql = "SELECT id FROM machines WHERE ephemeral = 1 AND state <> 'stopped'";
        self.rows("machines", sql, (), |row| row.word("id"))
    }

    /// The SSH ports that machines have, those being made or removed included.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn ssh_ports(&self) -> Result<BTreeSet<u16>> {
        let sql = "SELECT id, ssh_port FROM machines";
        let ports = self.rows("machines", sql, (), |row| row.number("ssh_port"))?;
        Ok(ports.into_iter().collect())
    }

    /// The process that was last recorded to run a machine; `None` for a stopped one. It may
    /// have ended since.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn process(&self, id: MachineId) -> Result<Option<RunningProcess>> {
        let sql = "SELECT id, vmm_pid, vmm_started, vmm_boot, accelerator FROM machines
                   WHERE id = ?1";
        self.row("machines", sql, [id.to_string()], read_process)?
            .ok_or_else(|| CatalogError::no_such(Kind::Machine, &id))
    }

    /// The recorded process of every machine that has one.
    ///
    /// # Errors
    /// [`CatalogError::DamagedRow`] and what `SQLite` says.
    pub fn all_processes(&self) -> Result<BTreeMap<MachineId, RunningProcess>> {
        let sql = "SELECT id, vmm_pid, vmm_started, vmm_boot, accelerator FROM machines
                   WHERE vmm_pid IS NOT NULL";
        let found = self.rows("machines", sql, (), |row| {
            Ok((row.word("id")?, read_process(row)?))
        })?;
        Ok(found
            .into_iter()
            .filter_map(|(id, process)| Some((id, process?)))
            .collect())
    }

    /// `only` is the ID of the one machine that `which` selects, where it selects by ID.
    fn select_machines(
        &self,
        which: &str,
        params: impl Params,
        only: Option<&str>,
    ) -> Result<Vec<Machine>> {
        let sql = format!("SELECT * FROM machines {which}");
        let mut machines = self.rows("machines", &sql, params, read_machine)?;
        let mut exposures = self.exposures(only)?;
        for machine in &mut machines {
            machine.exposed = exposures.remove(&machine.id).unwrap_or_default();
        }
        Ok(machines)
    }

    fn exposures(&self, machine: Option<&str>) -> Result<BTreeMap<MachineId, Vec<Exposure>>> {
        let sql = "SELECT machine, host, guest FROM exposures
                   WHERE machine = ?1 OR ?1 IS NULL ORDER BY machine, position";
        let rows = self.rows("exposures", sql, [machine], |row| {
            let exposure = Exposure {
                host: row.word("host")?,
                guest: row.number("guest")?,
            };
            Ok((row.word("machine")?, exposure))
        })?;
        let mut exposures: BTreeMap<MachineId, Vec<Exposure>> = BTreeMap::new();
        for (machine, exposure) in rows {
            exposures.entry(machine).or_default().push(exposure);
        }
        Ok(exposures)
    }
}

impl Transaction<'_> {
    /// Records a machine as it is given, times included. It has no process yet.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::IdTaken`], [`CatalogError::SshPortTaken`].
    pub fn insert_machine(&self, machine: &Machine) -> Result<()> {
        self.expect_free_id(Kind::Machine, &machine.id)?;
        self.expect_free_name(Kind::Machine, &machine.id, machine.name.as_str())?;
        self.expect_free_port(machine.id, machine.ssh_port)?;
        let state = StateColumns::of(machine.state);
        let image = machine
            .image
            .as_ref()
            .map(|image| image.as_str().to_owned());
        let values: [&dyn ToSql; 19] = [
            &machine.id.to_string(),
            &machine.name.as_str(),
            &image,
            &machine.vcpus.get(),
            &self.stored("a memory size", machine.memory.get())?,
            &machine.vmm.as_str(),
            &machine.mac.to_string(),
            &machine.ssh_port,
            &machine.autostart,
            &machine.owns_root,
            &machine.template.map(|volume| volume.to_string()),
            &(machine.lifetime == Lifetime::Ephemeral),
            &state.state,
            &state.paused_why,
            &state.stopping_how,
            &state.stopped_how,
            &machine.lifecycle.as_str(),
            &machine.created.to_string(),
            &machine.modified.to_string(),
        ];
        self.execute(
            "record a machine",
            "INSERT INTO machines (id, name, image, vcpus, memory, vmm, mac, ssh_port, autostart,
                                   owns_root, template, ephemeral, state, paused_why,
                                   stopping_how, stopped_how, lifecycle, created, modified)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                     ?18, ?19)",
            values,
        )?;
        self.insert_exposures(machine.id, &machine.exposed)
    }

    /// Moves a machine to another stage of its life.
    ///
    /// # Errors
    /// [`CatalogError::IllegalLifecycle`], [`CatalogError::NotFound`].
    pub fn set_machine_lifecycle(&self, id: MachineId, next: Lifecycle) -> Result<()> {
        let machine = self.machine(id)?;
        expect_lifecycle(Kind::Machine, &machine.name, machine.lifecycle, next)?;
        self.update_machine(id, "lifecycle = ?3", &[&next.as_str()])
    }

    /// Moves a machine to another state. One that is stopped has no process any more.
    ///
    /// # Errors
    /// [`CatalogError::IllegalTransition`] where that state cannot follow.
    pub fn set_machine_state(&self, id: MachineId, next: MachineState) -> Result<()> {
        let machine = self.machine(id)?;
        if !machine.state.can_become(next) {
            return Err(CatalogError::IllegalTransition {
                machine: machine.name,
                from: machine.state,
                to: next,
            });
        }
        let columns = StateColumns::of(next);
        let no_process =
            ", vmm_pid = NULL, vmm_started = NULL, vmm_boot = NULL, accelerator = NULL";
        let assignments = format!(
            "state = ?3, paused_why = ?4, stopping_how = ?5, stopped_how = ?6{}",
            if next.is_active() { "" } else { no_process }
        );
        self.update_machine(
            id,
            &assignments,
            &[
                &columns.state,
                &columns.paused_why,
                &columns.stopping_how,
                &columns.stopped_how,
            ],
        )
    }

    /// Records the process that runs a machine, or that none does.
    ///
    /// # Errors
    /// [`CatalogError::MachineStopped`] for a process of a stopped machine.
    pub fn set_process(&self, id: MachineId, running: Option<&RunningProcess>) -> Result<()> {
        let machine = self.machine(id)?;
        if running.is_some() && !machine.state.is_active() {
            let machine = machine.name;
            return Err(CatalogError::MachineStopped { machine });
        }
        let started = running
            .map(|running| self.stored("a start time", running.process.started))
            .transpose()?;
        self.update_machine(
            id,
            "vmm_pid = ?3, vmm_started = ?4, vmm_boot = ?5, accelerator = ?6",
            &[
                &running.map(|running| running.process.pid),
                &started,
                &running.map(|running| running.process.boot.as_str()),
                &running.map(|running| running.accelerator.as_str()),
            ],
        )
    }

    /// Changes what a machine runs with from its next start on.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_resources(&self, id: MachineId, vcpus: VcpuCount, memory: Bytes) -> Result<()> {
        let memory = self.stored("a memory size", memory.get())?;
        self.update_machine(id, "vcpus = ?3, memory = ?4", &[&vcpus.get(), &memory])
    }

    /// Records whether a machine starts when the host does.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_autostart(&self, id: MachineId, autostart: bool) -> Result<()> {
        self.update_machine(id, "autostart = ?3", &[&autostart])
    }

    /// Records how long a machine lasts.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_lifetime(&self, id: MachineId, lifetime: Lifetime) -> Result<()> {
        self.update_machine(id, "ephemeral = ?3", &[&(lifetime == Lifetime::Ephemeral)])
    }

    /// Gives a machine another SSH port on the host.
    ///
    /// # Errors
    /// [`CatalogError::SshPortTaken`], [`CatalogError::NotFound`].
    pub fn set_ssh_port(&self, id: MachineId, port: u16) -> Result<()> {
        self.expect_free_port(id, port)?;
        self.update_machine(id, "ssh_port = ?3", &[&port])
    }

    /// Replaces a machine's exposed ports.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`].
    pub fn set_exposed(&self, id: MachineId, exposed: &[Exposure]) -> Result<()> {
        self.touch_machine(id)?;
        let sql = "DELETE FROM exposures WHERE machine = ?1";
        self.execute("forget exposed ports", sql, [id.to_string()])?;
        self.insert_exposures(id, exposed)
    }

    /// Gives a machine another name; its own does no harm.
    ///
    /// # Errors
    /// [`CatalogError::NameTaken`], [`CatalogError::NotFound`].
    pub fn rename_machine(&self, id: MachineId, name: &MachineName) -> Result<()> {
        self.expect_free_name(Kind::Machine, &id, name.as_str())?;
        self.update_machine(id, "name = ?3", &[&name.as_str()])
    }

    /// Forgets a stopped machine. What it held is held by nobody then: its attachments go with
    /// it, the volumes stay.
    ///
    /// # Errors
    /// [`CatalogError::MachineActive`] while a VMM may be using those volumes;
    /// [`CatalogError::NotFound`].
    pub fn delete_machine(&self, id: MachineId) -> Result<()> {
        let machine = self.machine(id)?;
        if machine.state.is_active() {
            return Err(CatalogError::MachineActive {
                machine: machine.name,
                state: machine.state,
            });
        }
        let sql = "DELETE FROM machines WHERE id = ?1";
        self.execute("forget a machine", sql, [id.to_string()])?;
        Ok(())
    }

    /// Records that something about a machine changed that is kept in another table.
    pub(crate) fn touch_machine(&self, id: MachineId) -> Result<()> {
        self.update_machine(id, "id = id", &[])
    }

    fn update_machine(&self, id: MachineId, columns: &str, values: &[&dyn ToSql]) -> Result<()> {
        let sql = format!("UPDATE machines SET modified = ?2, {columns} WHERE id = ?1");
        let (key, now) = (id.to_string(), Timestamp::now().to_string());
        let mut all: Vec<&dyn ToSql> = vec![&key, &now];
        all.extend(values);
        match self.execute("change a machine", &sql, all.as_slice())? {
            0 => Err(CatalogError::no_such(Kind::Machine, &id)),
            _ => Ok(()),
        }
    }

    fn insert_exposures(&self, machine: MachineId, exposed: &[Exposure]) -> Result<()> {
        let sql = "INSERT INTO exposures (machine, position, host, guest) VALUES (?1, ?2, ?3, ?4)";
        for (position, exposure) in (0_i64..).zip(exposed) {
            let host = exposure.host.to_string();
            let values = (machine.to_string(), position, host, exposure.guest);
            self.execute("record an exposed port", sql, values)?;
        }
        Ok(())
    }

    fn expect_free_port(&self, id: MachineId, port: u16) -> Result<()> {
        let sql = "SELECT id, name FROM machines WHERE ssh_port = ?1 AND id <> ?2";
        let holder = self.row("machines", sql, (port, id.to_string()), |row| {
            row.word("name")
        })?;
        match holder {
            None => Ok(()),
            Some(machine) => Err(CatalogError::SshPortTaken { port, machine }),
        }
    }
}

/// A state as its columns; all but the first are NULL where they say nothing about it.
struct StateColumns {
    state: &'static str,
    paused_why: Option<&'static str>,
    stopping_how: Option<&'static str>,
    stopped_how: Option<&'static str>,
}

impl StateColumns {
    fn of(state: MachineState) -> StateColumns {
        let mut columns = StateColumns {
            state: state.as_str(),
            paused_why: None,
            stopping_how: None,
            stopped_how: None,
        };
        match state {
            MachineState::Starting | MachineState::Running => {}
            MachineState::Paused(why) => columns.paused_why = Some(why.as_str()),
            MachineState::Stopping(how) => columns.stopping_how = Some(how.as_str()),
            MachineState::Stopped(how) => {
                columns.stopped_how = how.map(sistemo_model::StopHow::as_str);
            }
        }
        columns
    }
}

fn read_state(row: &Columns<'_>) -> Result<MachineState> {
    let state: String = row.value("state")?;
    Ok(match state.as_str() {
        "starting" => MachineState::Starting,
        "running" => MachineState::Running,
        "paused" => MachineState::Paused(row.word("paused_why")?),
        "stopping" => MachineState::Stopping(row.word("stopping_how")?),
        "stopped" => MachineState::Stopped(row.optional_word("stopped_how")?),
        word => return Err(row.damaged("state", UnknownWord::new("machine state", word))),
    })
}

/// Reads all of a machine but its exposed ports, which have a table of their own.
fn read_machine(row: &Columns<'_>) -> Result<Machine> {
    let vcpus: u32 = row.number("vcpus")?;
    Ok(Machine {
        id: row.word("id")?,
        name: row.word("name")?,
        image: row.optional_word("image")?,
        vcpus: VcpuCount::try_from(vcpus).map_err(|error| row.damaged("vcpus", error))?,
        memory: Bytes::new(row.number("memory")?),
        vmm: row.word("vmm")?,
        mac: row.word("mac")?,
        ssh_port: row.number("ssh_port")?,
        exposed: Vec::new(),
        autostart: row.value("autostart")?,
        owns_root: row.value("owns_root")?,
        template: row.optional_word("template")?,
        lifetime: if row.value("ephemeral")? {
            Lifetime::Ephemeral
        } else {
            Lifetime::Persistent
        },
        state: read_state(row)?,
        lifecycle: row.word("lifecycle")?,
        created: row.word("created")?,
        modified: row.word("modified")?,
    })
}

fn read_process(row: &Columns<'_>) -> Result<Option<RunningProcess>> {
    let pid: Option<u32> = row.value("vmm_pid")?;
    let Some(pid) = pid else {
        return Ok(None);
    };
    Ok(Some(RunningProcess {
        process: ProcessIdentity {
            pid,
            started: row.number("vmm_started")?,
            boot: row.value("vmm_boot")?,
        },
        accelerator: row.word("accelerator")?,
    }))
}
