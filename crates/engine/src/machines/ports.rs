//! Ports of the host that lead to a machine.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

use sistemo_model::{Exposure, Machine};

use super::LOOPBACK;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::reporter::Notice;

impl Engine {
    /// Gives a machine another SSH port where its own is in use by somebody else.
    pub(super) fn choose_ssh_port(&self, machine: &Machine) -> Result<()> {
        if check_free(SocketAddr::new(LOOPBACK, machine.ssh_port)).is_ok() {
            return Ok(());
        }
        let taken = self.catalogue.read(|session| session.ssh_ports())?;
        let port = free_port(&taken, &machine.exposed)?;
        self.catalogue
            .write(|session| session.set_ssh_port(machine.id, port))?;
        let machine = machine.name.clone();
        self.reporter
            .notice(&Notice::SshPortChanged { machine, port });
        Ok(())
    }
}

/// Refuses an address that stands twice among those to be exposed.
pub(super) fn check_distinct(exposures: &[Exposure]) -> Result<()> {
    for (at, exposure) in exposures.iter().enumerate() {
        if exposures[..at]
            .iter()
            .any(|earlier| earlier.host == exposure.host)
        {
            let source = std::io::ErrorKind::AddrInUse.into();
            return Err(Error::PortUnavailable {
                address: exposure.host,
                source,
            });
        }
    }
    Ok(())
}

/// Refuses an address on which the host already listens.
pub(super) fn check_free(address: SocketAddr) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::PortUnavailable { address, source }),
    }
}

/// A port of loopback that is free now, that no machine has for its SSH server, and that none
/// of `exposed` asks for.
pub(super) fn free_port(taken: &BTreeSet<u16>, exposed: &[Exposure]) -> Result<u16> {
    let any = SocketAddr::new(LOOPBACK, 0);
    // Kept open until one is chosen, so that the system offers another one each time.
    let mut offered = Vec::new();
    loop {
        let listener = TcpListener::bind(any).map_err(|source| Error::PortUnavailable {
            address: any,
            source,
        })?;
        let address = listener
            .local_addr()
            .map_err(|source| Error::PortUnavailable {
                address: any,
                source,
            })?;
        let port = address.port();
        let wanted = exposed.iter().any(|exposure| exposure.host.port() == port);
        if !wanted && !taken.contains(&port) {
            return Ok(port);
        }
        offered.push(listener);
    }
}
