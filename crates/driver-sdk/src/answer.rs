//! Each operation of the protocol, as a call of the contract.

use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde::Serialize;
use serde_json::Value;
use sistemo_host::Changed;
use sistemo_model::{Access, VolumeId};
use sistemo_pools::external::protocol::{
    Capabilities, CapabilityOption, CapabilityPower, ChangedAnswer, DIRECTORY, Done, ErrorBody,
    ErrorCode, FoundAnswer, InspectAnswer, ListAnswer, LocationAnswer, Operation, PROTOCOL,
    PoolAnswer, RESERVED, Request, SharingAnswer, SnapshotAnswer, SnapshotsAnswer, UsageAnswer,
    WayAnswer,
};
use sistemo_pools::{
    Clones, Description, Driver, Facts, FirstUse, Format, Found, Location, Origin, Pool, PoolError,
    Power, Snapshots,
};

use crate::refusal::body_of;
use crate::{open, text};

type Answered = Result<String, ErrorBody>;

/// Does what is asked and says so.
pub(crate) fn answer(driver: &dyn Driver, request: Request) -> Answered {
    let first_use = match request.operation {
        Operation::Capabilities => return Ok(text(&capabilities(driver))),
        Operation::Setup => FirstUse::Allowed,
        _ => FirstUse::Known,
    };
    let pool = open(driver, &request, first_use)?;
    let talk = Talk { pool: &*pool };
    talk.answer(request.operation)
}

fn capabilities(driver: &dyn Driver) -> Capabilities {
    let info = driver.info();
    let options = info.options.into_iter();
    let options = options
        .filter(|option| option.name != DIRECTORY)
        .map(|option| CapabilityOption {
            name: option.name,
            required: option.required,
            default: option.default,
            summary: option.summary,
            kind: option.kind,
        });
    let powers = info.powers.into_iter().filter_map(|power| match power {
        Power::Clone => Some(CapabilityPower::Clone),
        Power::Snapshot => Some(CapabilityPower::Snapshot),
        _ => None,
    });
    Capabilities {
        protocol: PROTOCOL,
        summary: info.summary,
        options: options.collect(),
        powers: powers.chain([CapabilityPower::Sharing]).collect(),
        always_open: false,
    }
}

struct Talk<'a> {
    pool: &'a dyn Pool,
}

impl Talk<'_> {
    fn answer(&self, operation: Operation) -> Answered {
        match operation {
            Operation::Capabilities => Err(unsupported("a pool has no capabilities")),
            Operation::Setup | Operation::Probe => self.probe(),
            Operation::Usage => {
                let usage = done(self.pool.usage())?;
                say(&UsageAnswer {
                    size: usage.size,
                    used: usage.used,
                    free: usage.free,
                })
            }
            Operation::List => self.list(),
            Operation::Inspect { volume } => say(&InspectAnswer {
                found: match done(self.pool.find(volume))? {
                    Some(found) => found_answer(found)?,
                    None => None,
                },
            }),
            Operation::Create {
                volume,
                description,
                ..
            } => {
                let description = self.described(volume, &description)?;
                done(
                    self.again_without_remains(volume, &|| self.pool.draft(&description)?.commit()),
                )?;
                self.open(volume, Access::ReadWrite)
            }
            Operation::Remove { volume } => changed(self.pool.remove(volume)),
            Operation::Grow {
                volume,
                size,
                description,
            } => {
                let description = self.described(volume, &description)?;
                let _ = done(self.pool.grow(volume, size))?;
                self.describe(&description)
            }
            Operation::Open { volume, access } => self.open(volume, access),
            Operation::Close { volume } => {
                done(self.pool.close(volume))?;
                say(&Done {})
            }
            Operation::Describe {
                volume,
                description,
            } => self.describe(&self.described(volume, &description)?),
            Operation::Clone {
                volume,
                description,
                source,
                source_snapshot,
                ..
            } => {
                let description = self.described(volume, &description)?;
                let origin = Origin {
                    volume: source,
                    snapshot: source_snapshot.as_ref(),
                };
                let clones = self.clones()?;
                let way = done(self.again_without_remains(volume, &|| {
                    clones.clone_volume(origin, &description, &mut |_, _| {})
                }))?;
                say(&WayAnswer { way })
            }
            Operation::Sharing { volume } => say(&SharingAnswer {
                sharing: done(self.pool.sharing(volume))?.map(Into::into),
            }),
            kept => self.answer_of_snapshots(kept),
        }
    }

    fn answer_of_snapshots(&self, operation: Operation) -> Answered {
        let power = self.snapshots()?;
        match operation {
            Operation::Snapshots { volume } => {
                let snapshots = done(power.snapshots(volume))?.into_iter();
                let snapshots = snapshots.map(|snapshot| SnapshotAnswer {
                    name: snapshot.name,
                    created: snapshot.created,
                    size: snapshot.size,
                    alone: snapshot.alone,
                });
                say(&SnapshotsAnswer {
                    snapshots: snapshots.collect(),
                })
            }
            Operation::Snapshot {
                volume,
                snapshot,
                created,
            } => {
                let taken = power.take_snapshot(volume, &snapshot, created, None, &mut |_, _| {});
                say(&WayAnswer { way: done(taken)? })
            }
            Operation::Revert {
                volume,
                snapshot,
                description,
            } => {
                let description = self.described(volume, &description)?;
                let way = done(power.revert(volume, &snapshot, &mut |_, _| {}))?;
                self.describe(&description)?;
                say(&WayAnswer { way })
            }
            Operation::DeleteSnapshot { volume, snapshot } => {
                changed(power.delete_snapshot(volume, &snapshot))
            }
            Operation::OpenSnapshot { volume, snapshot } => {
                let location = done(power.open_snapshot(volume, &snapshot))?;
                let location = location
                    .ok_or_else(|| unsupported("no program can read snapshots of this pool"))?;
                say(&LocationAnswer {
                    location: location.into(),
                })
            }
            other => Err(unsupported(other.word())),
        }
    }

    fn probe(&self) -> Answered {
        done(self.pool.probe())?;
        say(&PoolAnswer {
            clone_cost: self.pool.clones().map(Clones::clone_cost),
            snapshot_cost: self.pool.snapshots().map(Snapshots::snapshot_cost),
        })
    }

    fn list(&self) -> Answered {
        let (mut volumes, mut strays) = (Vec::new(), Vec::new());
        for found in done(self.pool.list())? {
            match found {
                Found::Stray { name } if name.starts_with(RESERVED) => {}
                Found::Stray { name } => strays.push(name),
                other => volumes.extend(found_answer(other)?),
            }
        }
        say(&ListAnswer {
            found: volumes,
            strays,
        })
    }

    fn open(&self, volume: VolumeId, access: Access) -> Answered {
        let location = done(self.pool.open(volume, access))?.into();
        say(&LocationAnswer { location })
    }

    fn describe(&self, description: &Description) -> Answered {
        let _ = done(self.pool.describe(description))?;
        say(&Done {})
    }

    /// Does something that makes a volume; where a killed call left something of one, that goes
    /// first. Whoever asks holds the volume's lock, so nobody is at work on it.
    fn again_without_remains<T>(
        &self,
        volume: VolumeId,
        make: &dyn Fn() -> Result<T, PoolError>,
    ) -> Result<T, PoolError> {
        match make() {
            Err(PoolError::DraftThere { .. }) => {
                let _ = self.pool.remove(volume)?;
                make()
            }
            other => other,
        }
    }

    fn described(&self, volume: VolumeId, value: &Value) -> Result<Description, ErrorBody> {
        let wrong = |message: String| ErrorBody {
            code: ErrorCode::Failed,
            message,
        };
        let description = Description::from_value(value, volume);
        description.map_err(|error| {
            let pool = self.pool.name();
            wrong(format!(
                "the description is not understood in pool {pool}: {error}"
            ))
        })
    }

    fn clones(&self) -> Result<&dyn Clones, ErrorBody> {
        let clones = self.pool.clones();
        clones.ok_or_else(|| unsupported("volumes of this pool cannot be cloned"))
    }

    fn snapshots(&self) -> Result<&dyn Snapshots, ErrorBody> {
        let snapshots = self.pool.snapshots();
        snapshots.ok_or_else(|| unsupported("this pool keeps no snapshots"))
    }
}

fn found_answer(found: Found) -> Result<Option<FoundAnswer>, ErrorBody> {
    Ok(Some(match found {
        Found::Volume { description, facts } => {
            let described = description.to_value().map_err(|error| ErrorBody {
                code: ErrorCode::Failed,
                message: error.to_string(),
            })?;
            volume_answer(description.id, Some(described), facts)
        }
        Found::Undescribed { id, facts } => volume_answer(id, None, facts),
        Found::Draft { id } | Found::Orphan { id, .. } => FoundAnswer::Remains { volume: id },
        Found::Damaged { id, flaw } => FoundAnswer::Damaged {
            volume: id,
            flaws: vec![flaw.to_string()],
        },
        Found::Stray { .. } => return Ok(None),
    }))
}

fn volume_answer(volume: VolumeId, description: Option<Value>, facts: Facts) -> FoundAnswer {
    let is_device = || fs::metadata(&facts.path).is_ok_and(|m| m.file_type().is_block_device());
    let location = match facts.format {
        Format::Qcow2 => Location::Qcow2File(facts.path),
        Format::Raw if is_device() => Location::BlockDevice(facts.path),
        Format::Raw => Location::RawFile(facts.path),
    };
    FoundAnswer::Volume {
        volume,
        description,
        size: facts.size,
        used: facts.used,
        location: location.into(),
        flaws: Vec::new(),
    }
}

fn done<T>(result: Result<T, PoolError>) -> Result<T, ErrorBody> {
    result.map_err(|error| body_of(&error))
}

fn changed(result: Result<Changed, PoolError>) -> Answered {
    let changed = done(result)? == Changed::Yes;
    say(&ChangedAnswer { changed })
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "it ends what may have failed before"
)]
fn say(answer: &impl Serialize) -> Answered {
    Ok(text(answer))
}

fn unsupported(message: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Unsupported,
        message: message.to_owned(),
    }
}
