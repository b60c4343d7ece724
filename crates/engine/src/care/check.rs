//! Looking for damage, and mending it.

use std::fmt;
use std::os::fd::AsFd;

use serde::Serialize;
use sistemo_host::Changed;
use sistemo_host::program::ProgramError;
use sistemo_model::{
    Access, Filesystem, PoolName, Reference, SnapshotKind, SnapshotMark, SnapshotName, Timestamp,
    Volume, VolumeId, VolumeName,
};
use sistemo_pools::{Cost, Flaw, Pool, Snapshots};

use super::inside::{Inside, begins_empty, head_of};
use super::tools::{Disk, Free, Look, Tools, of};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::holding::IdleVolume;
use crate::reporter::Notice;
use crate::volumes::{description, pool_error};

/// What is done about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// It is told.
    Report,
    /// What can be mended is mended; the volume is kept as it was first, where that is instant.
    Repair,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is wrong with it.
    Ok,
    /// A filesystem that was not unmounted cleanly, as after a crash. The next mount sets it
    /// right; whether it is damaged beside cannot be told before.
    Unclean,
    /// Something is wrong with it.
    Damaged,
    /// There was nothing to be looked at, or nothing that this program knows how to.
    NotChecked,
}

impl Verdict {
    /// The word users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Unclean => "unclean",
            Verdict::Damaged => "damaged",
            Verdict::NotChecked => "not checked",
        }
    }

    /// Whether somebody should do something about it.
    #[must_use]
    pub fn is_problem(self) -> bool {
        matches!(self, Verdict::Unclean | Verdict::Damaged)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why what is wrong with a volume cannot be mended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The pool has not got the data any more that the volume had, or not as it was.
    Data(String),
    /// The filesystem's log is its last writes, and only a mount replays it.
    DirtyLog,
    /// There is no program that could be trusted with it.
    NoSafeRepair,
    /// There is nothing left to find the filesystem by.
    Lost,
    /// It could be found by a copy of its beginning, but a guest may have put something else in
    /// its place, and the pool keeps no snapshot at once that would bring that back.
    Replaced,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::Data(flaws) => flaws,
            Obstacle::DirtyLog => "its log has to be replayed first, by mounting it",
            Obstacle::NoSafeRepair => "its own repair may make it worse",
            Obstacle::Lost => "nothing is left to find it by",
            Obstacle::Replaced => "something else may be in its place",
        })
    }
}

/// A part of a volume that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// `data`: what the pool keeps the volume in; or `filesystem`.
    pub part: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// Who looked: the pool's driver, or a program; `None` where nobody did.
    pub checked_with: Option<String>,
    /// What they said, one thing a line.
    pub found: Vec<String>,
}

/// A volume that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its pool.
    pub pool: PoolName,
    /// What its bytes show it to hold: `ext4`, `xfs`, `btrfs`, `partitions`, `luks`, `lvm`, `swap`,
    /// `mdraid`, `bcache`, `several` or `unknown`; `None` where they could not be read.
    pub holds: Option<&'static str>,
    /// How its parts are, after what was mended.
    pub parts: Vec<Part>,
    /// What was mended: `description`, `filesystem`.
    pub repaired: Vec<&'static str>,
    /// The snapshot of the volume as it was before its filesystem was mended.
    pub kept: Option<SnapshotName>,
    /// Why what is wrong with its filesystem cannot be mended here.
    #[serde(skip)]
    pub obstacle: Option<Obstacle>,
}

impl Checked {
    /// Whether there is no problem, or none any more.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.parts.iter().any(|part| part.verdict.is_problem())
    }
}

type ToolResult<T> = std::result::Result<T, ProgramError>;

/// What a look at a volume found.
struct Seen {
    flaws: Vec<Flaw>,
    driver: String,
    inside: Option<Inside>,
    /// The programs of the filesystem that is there, or was.
    tools: Option<&'static dyn Tools>,
    /// The program that was asked.
    checker: Option<&'static str>,
    /// Of what is inside, or why there is none.
    filesystem: Look,
}

impl Engine {
    /// Looks for damage to a volume: to what its pool keeps it in, and to the filesystem on it,
    /// whichever a guest has made; its machine, if it has one, must be stopped. Only where damage
    /// is found and is to be mended does anything change.
    ///
    /// A crash in the middle of mending leaves a filesystem that the next check finds unclean or
    /// damaged, and mends; the snapshot stays.
    ///
    /// # Errors
    /// Where the machine is active, the pool cannot be read, or a program is missing or could
    /// not do its work. [`Error::NotRepairable`] where nothing can be done about what was found;
    /// nothing has changed then.
    pub fn check_volume(&self, reference: &Reference, on_damage: OnDamage) -> Result<Checked> {
        let held = self.hold_idle_volume(reference, "check")?;
        let volume = &held.volume;
        let seen = self.in_stage(&format!("checking {}", volume.name), || self.see(&held))?;
        if on_damage == OnDamage::Report || !seen.has_problem() {
            return Ok(seen.told_of(volume, Vec::new(), None));
        }
        self.require_pool(&volume.pool)?;
        let pool = self.pool(&volume.pool)?;
        self.refuse_what_cannot_be_mended(volume, pool.as_ref(), &seen)?;
        let mut repaired = Vec::new();
        if !seen.flaws.is_empty() {
            let _: Changed = pool
                .describe(&description(volume))
                .map_err(|source| pool_error(volume, "describe", source))?;
            repaired.push("description");
        }
        let mut kept = None;
        if let (Some(tools), true) = (seen.tools, seen.filesystem.verdict.is_problem()) {
            kept = self.keep_before_repair(volume, pool.as_ref())?;
            let outcome = self.in_stage(&format!("repairing {}", volume.name), || {
                self.with_tools(&held, tools, Access::ReadWrite, "repair", |disk| {
                    tools.repair(disk)
                })
            });
            // A repair that did not come to its end has changed it too.
            self.note_changed(volume.id)?;
            outcome?;
            repaired.push("filesystem");
        }
        let again = self.in_stage(&format!("checking {}", volume.name), || self.see(&held))?;
        if repaired.contains(&"filesystem") && !again.has_problem() {
            // What its machine left undone is made up for.
            self.change_history(volume.id, |history| history.dirty = false)?;
        }
        Ok(again.told_of(volume, repaired, kept))
    }

    /// Looks at a volume that nobody uses, and changes nothing.
    fn see(&self, held: &IdleVolume) -> Result<Seen> {
        let volume = &held.volume;
        let pool = self.pool(&volume.pool)?;
        let mut progress = |done, total| self.reporter.progress(done, total);
        let flaws = pool
            .examine(volume.id, volume.size, &mut progress)
            .map_err(|source| pool_error(volume, "check", source))?;
        let driver = pool.driver().to_owned();
        let unlooked = |words: &str| Look::told(Verdict::NotChecked, words);
        if !flaws.iter().all(is_of_the_description) {
            return Ok(Seen {
                flaws,
                driver,
                inside: None,
                tools: None,
                checker: None,
                filesystem: unlooked("its data is not usable"),
            });
        }
        let (inside, look) = self.look_inside(held, |tools, disk| tools.look(disk))?;
        let tools = match inside {
            Inside::Filesystem(tools) => Some(tools),
            Inside::Unknown => self.lost_filesystem(volume)?,
            Inside::Other(_) | Inside::Several => None,
        };
        let (filesystem, asked) = match (tools, look) {
            (Some(tools), None) => self.look_for_lost(held, tools)?,
            (_, Some(look)) => {
                let asked = look.verdict != Verdict::NotChecked;
                (look, asked)
            }
            (None, None) => {
                let made_with = match (inside, volume.filesystem) {
                    (Inside::Unknown, made) if made != Filesystem::None => {
                        format!("; it was made with {made}")
                    }
                    _ => String::new(),
                };
                (unlooked(&format!("it holds {inside}{made_with}")), false)
            }
        };
        Ok(Seen {
            flaws,
            driver,
            inside: Some(inside),
            tools,
            checker: tools.filter(|_| asked).map(Tools::checker),
            filesystem,
        })
    }

    /// Looks for a filesystem of which there is no sign, and tells whether a program was asked.
    fn look_for_lost(&self, held: &IdleVolume, tools: &'static dyn Tools) -> Result<(Look, bool)> {
        let made = tools.filesystem();
        let lost = format!("it was made with {made}, of which there is no sign");
        let lost = Look::told(Verdict::Damaged, &lost);
        let found = self.with_tools(held, tools, Access::ReadOnly, "check", |disk| {
            tools.look_for_lost(disk)
        })?;
        Ok(match found {
            Some(found) => (lost.and(found), true),
            None => (lost.not_mendable(Obstacle::Lost), false),
        })
    }

    /// The filesystem that a volume without a sign of anything was made with, unless it is as
    /// empty as one that was wiped.
    fn lost_filesystem(&self, volume: &Volume) -> Result<Option<&'static dyn Tools>> {
        let Some(tools) = of(volume.filesystem) else {
            return Ok(None);
        };
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "read", source);
        let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
        let empty = begins_empty(content.as_ref()).map_err(fail)?;
        Ok((!empty).then_some(tools))
    }

    /// Finds out what a volume holds, and asks the programs of the filesystem on it, where there
    /// is one.
    fn look_inside<T>(
        &self,
        held: &IdleVolume,
        ask: impl FnOnce(&dyn Tools, &Disk<'_>) -> ToolResult<T>,
    ) -> Result<(Inside, Option<T>)> {
        let volume = &held.volume;
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "read", source);
        let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
        let inside = Inside::of(&head_of(content.as_ref()).map_err(fail)?);
        drop(content);
        let Inside::Filesystem(tools) = inside else {
            return Ok((inside, None));
        };
        let answer = self.with_tools(held, tools, Access::ReadOnly, "check", |disk| {
            ask(tools, disk)
        })?;
        Ok((inside, Some(answer)))
    }

    /// What a volume holds, and which blocks of it its filesystem does not use, where there is
    /// one.
    pub(super) fn free_blocks(&self, held: &IdleVolume) -> Result<(Inside, Option<Free>)> {
        self.look_inside(held, |tools, disk| {
            let look = tools.look(disk)?;
            match look.verdict {
                Verdict::Ok => tools.free(disk),
                Verdict::Unclean => Ok(Free::Unknown("was not unmounted cleanly")),
                Verdict::Damaged => Ok(Free::Unknown("is damaged")),
                Verdict::NotChecked => Ok(Free::Unknown("has other devices too")),
            }
        })
    }

    /// Shows a volume to the programs of the filesystem on it.
    fn with_tools<T>(
        &self,
        held: &IdleVolume,
        tools: &dyn Tools,
        access: Access,
        action: &'static str,
        work: impl FnOnce(&Disk<'_>) -> ToolResult<T>,
    ) -> Result<T> {
        let (volume, lock) = (&held.volume, held.lock()?);
        let pool = self.pool(&volume.pool)?;
        let fail = |source| pool_error(volume, "read", source);
        let content = pool.content(volume.id, Access::ReadOnly).map_err(fail)?;
        let first = head_of(content.as_ref()).map_err(fail)?;
        drop(content);
        let outcome = self.with_raw_access(volume, access, lock, |raw| {
            let inherited: Vec<_> = raw.held().into_iter().chain([lock.as_fd()]).collect();
            work(&Disk {
                path: raw.path(),
                held: &inherited,
                head: &first,
            })
        })?;
        outcome.map_err(|source| Error::FilesystemProgram {
            action,
            filesystem: tools.filesystem(),
            volume: volume.name.clone(),
            source,
        })
    }

    #[expect(clippy::unused_self, reason = "it reads better among its like")]
    fn refuse_what_cannot_be_mended(
        &self,
        volume: &Volume,
        pool: &dyn Pool,
        seen: &Seen,
    ) -> Result<()> {
        let (what, obstacle) = if seen.flaws.iter().all(is_of_the_description) {
            let found_by_a_copy =
                matches!(seen.inside, Some(Inside::Unknown)) && seen.tools.is_some();
            let replaced = found_by_a_copy && instant_snapshots(pool).is_none();
            let replaced = replaced.then_some(Obstacle::Replaced);
            ("filesystem", seen.filesystem.obstacle.clone().or(replaced))
        } else {
            let flaws: Vec<_> = seen.flaws.iter().map(Flaw::to_string).collect();
            ("data", Some(Obstacle::Data(flaws.join("; "))))
        };
        let volume = volume.name.clone();
        obstacle.map_or(Ok(()), |obstacle| {
            Err(Error::NotRepairable {
                volume,
                what,
                obstacle,
            })
        })
    }

    /// Keeps a volume as it is, where that costs nothing; where it does not, says that nothing was
    /// kept. A revert without a name leaves the snapshot, which has the damage, out while there are
    /// others.
    fn keep_before_repair(&self, volume: &Volume, pool: &dyn Pool) -> Result<Option<SnapshotName>> {
        let Some(power) = instant_snapshots(pool) else {
            self.reporter.notice(&Notice::NothingKept {
                volume: volume.name.clone(),
                pool: volume.pool.clone(),
            });
            return Ok(None);
        };
        let fail = |source| pool_error(volume, "keep a snapshot of", source);
        let there = power.snapshots(volume.id).map_err(fail)?;
        let name = name_before_repair(|name| there.iter().any(|taken| taken.name == *name))?;
        // Before it is there: without a mark it would be one that was asked for.
        let mark = SnapshotMark {
            kind: SnapshotKind::Replaced,
            pinned: false,
        };
        self.change_history(volume.id, |history| {
            history.marks.insert(name.clone(), mark);
        })?;
        self.with_room(&volume.pool, || {
            power
                .take_snapshot(volume.id, &name, Timestamp::now(), None, &mut |_, _| {})
                .map_err(fail)
        })?;
        Ok(Some(name))
    }

    /// Does something that may take a while, and tells what.
    pub(super) fn in_stage<T>(&self, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.reporter.stage(text);
        let done = work();
        self.reporter.stage_over();
        done
    }
}

impl Seen {
    fn has_problem(&self) -> bool {
        !self.flaws.is_empty() || self.filesystem.verdict.is_problem()
    }

    fn told_of(
        self,
        volume: &Volume,
        repaired: Vec<&'static str>,
        kept: Option<SnapshotName>,
    ) -> Checked {
        let data = Part {
            part: "data",
            verdict: if self.flaws.is_empty() {
                Verdict::Ok
            } else {
                Verdict::Damaged
            },
            checked_with: Some(self.driver),
            found: self.flaws.iter().map(Flaw::to_string).collect(),
        };
        let filesystem = Part {
            part: "filesystem",
            verdict: self.filesystem.verdict,
            checked_with: self.checker.map(str::to_owned),
            found: self.filesystem.words,
        };
        Checked {
            id: volume.id,
            name: volume.name.clone(),
            pool: volume.pool.clone(),
            holds: self.inside.map(Inside::as_str),
            parts: vec![data, filesystem],
            repaired,
            kept,
            obstacle: self.filesystem.obstacle,
        }
    }
}

/// Whether it is only what is written beside the data that is wrong, which can be written anew:
/// the catalogue knows all of it.
fn is_of_the_description(flaw: &Flaw) -> bool {
    matches!(
        flaw,
        Flaw::Undescribed | Flaw::BadDescription | Flaw::DescribedSize { .. }
    )
}

/// The name of the snapshot that is kept before a repair, with a number where it is taken.
fn name_before_repair(taken: impl Fn(&SnapshotName) -> bool) -> Result<SnapshotName> {
    let base = "before-repair";
    let numbered = (2_u32..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.to_owned())
        .chain(numbered)
        .map_while(|name| name.parse().ok())
        .find(|name| !taken(name))
        .ok_or_else(|| Error::NameTaken {
            kind: Kind::Snapshot,
            name: base.to_owned(),
        })
}
/// The power of a pool to keep a volume as it is at no cost.
fn instant_snapshots(pool: &dyn Pool) -> Option<&dyn Snapshots> {
    pool.snapshots()
        .filter(|power| power.snapshot_cost() == Cost::Instant)
}
