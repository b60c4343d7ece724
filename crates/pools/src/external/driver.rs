//! An external driver, as the registry knows it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sistemo_model::CatalogueId;

use super::call::{self, Answer, Limits};
use super::fault::DriverFault;
use super::pool::ExternalPool;
use super::protocol::{
    Capabilities, CapabilityPower, DIRECTORY, ErrorBody, Operation, PROTOCOL, Request,
};
use crate::config::{Keeping, PoolConfig};
use crate::registry::{Driver, DriverInfo, DriverOption, Power};
use crate::{FirstUse, Pool, PoolError};

/// What a section of storage.conf has besides a driver's options.
const TAKEN: [&str; 3] = [DIRECTORY, "driver", "class"];

/// An executable that has said what it is and can.
#[derive(Clone, Debug)]
pub struct ExternalDriver {
    name: String,
    path: PathBuf,
    capabilities: Capabilities,
    limits: Limits,
}

impl ExternalDriver {
    /// Asks the executable at an absolute path what it is and can. `name` is what the driver is
    /// called: by it the registry finds it again.
    ///
    /// # Errors
    /// Where it must not be run, or its answer makes no sense.
    pub fn introduce(name: &str, path: &Path, limits: Limits) -> Result<Self, DriverFault> {
        let request = Request {
            protocol: PROTOCOL,
            operation: Operation::Capabilities,
            pool: None,
        };
        let capabilities = match call::call::<Capabilities>(path, &request, &limits, &[])? {
            Answer::Done(capabilities) => capabilities,
            Answer::Refused(ErrorBody { code, message }) => {
                let code = code.word();
                return Err(DriverFault::Said { code, message });
            }
        };
        check(&capabilities)?;
        Ok(ExternalDriver {
            name: name.to_owned(),
            path: path.to_owned(),
            capabilities,
            limits,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn has(&self, power: CapabilityPower) -> bool {
        self.capabilities.powers.contains(&power)
    }

    pub(super) fn always_open(&self) -> bool {
        self.capabilities.always_open
    }
}

impl Driver for ExternalDriver {
    fn info(&self) -> DriverInfo {
        let own = self.capabilities.options.iter().cloned();
        let own = own.map(|option| DriverOption {
            name: option.name,
            required: option.required,
            default: option.default,
            summary: option.summary,
            kind: option.kind,
        });
        let powers = self.capabilities.powers.iter();
        let powers = powers.filter_map(|power| match power {
            CapabilityPower::Clone => Some(Power::Clone),
            CapabilityPower::Snapshot => Some(Power::Snapshot),
            CapabilityPower::Sharing => None,
        });
        DriverInfo {
            name: self.name.clone(),
            aliases: Vec::new(),
            classes: Vec::new(),
            summary: self.capabilities.summary.clone(),
            options: std::iter::once(DriverOption::directory())
                .chain(own)
                .collect(),
            powers: powers.collect(),
        }
    }

    fn open(
        &self,
        pool: &PoolConfig,
        catalogue: CatalogueId,
        first_use: FirstUse,
    ) -> Result<Arc<dyn Pool>, PoolError> {
        let opened = ExternalPool::open(self.clone(), pool, catalogue, first_use)?;
        Ok(Arc::new(opened))
    }
}

fn check(capabilities: &Capabilities) -> Result<(), DriverFault> {
    let protocol = capabilities.protocol;
    if protocol != PROTOCOL {
        return Err(DriverFault::Protocol { protocol });
    }
    let wrong = |reason: String| Err(DriverFault::Capabilities { reason });
    let summary = &capabilities.summary;
    if summary.is_empty() || summary.chars().any(char::is_control) {
        return wrong("its summary is not a line of text".to_owned());
    }
    let mut names = HashSet::new();
    for option in &capabilities.options {
        let name = &option.name;
        let small = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(small) {
            return wrong(format!("no option can be called `{}`", name.escape_debug()));
        }
        if TAKEN.contains(&name.as_str()) || Keeping::has(name) {
            return wrong(format!("{name} is an option of every pool"));
        }
        if !names.insert(name) {
            return wrong(format!("option {name} is there twice"));
        }
        if option.required && option.default.is_some() {
            return wrong(format!("option {name} is required and has a default"));
        }
    }
    Ok(())
}
