//! The kernel command line, which tells a guest who it is without its disk being touched.

use sistemo_model::{MachineId, MachineName};

use crate::error::{Error, Result};

/// x86's `COMMAND_LINE_SIZE` is 2048 with the NUL behind it (arch/x86/include/asm/setup.h); the
/// kernel cuts off the rest.
const LIMIT: usize = 2047;

/// What a guest is told about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIdentity {
    /// Becomes its machine-id, and so decides whether its SSH host keys are still its own.
    pub machine: MachineId,
    /// Becomes its host name.
    pub name: MachineName,
    /// The public SSH key that may log in as root, as in an `authorized_keys` line.
    pub authorized_key: String,
}

/// The kernel command line for a guest whose root filesystem is `/dev/vda`.
///
/// The words are the kernel's (kernel-parameters.txt) and systemd's: `systemd.machine_id=` and
/// `systemd.hostname=` from kernel-command-line(7), `systemd.set_credential=` from systemd(1),
/// with the double quotes that both parsers take around a value with spaces. systemd's tmpfiles
/// write the credential to root's `authorized_keys` where there is none.
///
/// # Errors
/// [`Error::AuthorizedKey`] for a key that would break out of its quotes, and
/// [`Error::CommandLineTooLong`].
pub fn command_line(guest: &GuestIdentity) -> Result<String> {
    let GuestIdentity {
        machine,
        name,
        authorized_key,
    } = guest;
    let key = authorized_key.trim();
    let fault = if key.is_empty() {
        Some("is empty")
    } else if key.contains('"') {
        Some("contains a double quote")
    } else if key.chars().any(char::is_control) {
        Some("contains a control character or a second line")
    } else {
        None
    };
    if let Some(fault) = fault {
        return Err(Error::AuthorizedKey { fault });
    }
    let line = format!(
        "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.machine_id={} \
         systemd.hostname={name} \"systemd.set_credential=ssh.authorized_keys.root:{key}\"",
        machine.simple()
    );
    if line.len() > LIMIT {
        return Err(Error::CommandLineTooLong {
            length: line.len(),
            limit: LIMIT,
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(key: &str) -> GuestIdentity {
        GuestIdentity {
            machine: "a1b2c3d4-5678-4abc-8ef0-123456789abc".parse().unwrap(),
            name: "db1".parse().unwrap(),
            authorized_key: key.to_owned(),
        }
    }

    #[test]
    fn a_guest_is_told_its_machine_id_host_name_and_key() {
        let line = command_line(&guest("ssh-ed25519 AAAA me@host\n")).unwrap();
        assert!(line.starts_with("root=/dev/vda rw "), "{line}");
        for word in [
            " systemd.machine_id=a1b2c3d456784abc8ef0123456789abc ",
            " systemd.hostname=db1 ",
            " \"systemd.set_credential=ssh.authorized_keys.root:ssh-ed25519 AAAA me@host\"",
        ] {
            assert!(line.contains(word), "{line}");
        }
    }

    #[test]
    fn a_key_cannot_break_out_of_its_quotes() {
        for key in ["", " \n", "k\" init=/bin/sh \"", "one\ntwo", "nul\0"] {
            let error = command_line(&guest(key)).unwrap_err();
            assert!(matches!(error, Error::AuthorizedKey { .. }), "{key:?}");
        }
    }

    #[test]
    fn a_line_that_the_kernel_would_cut_off_is_refused() {
        let overhead = command_line(&guest("k")).unwrap().len() - 1;
        let longest = "k".repeat(LIMIT - overhead);
        assert_eq!(command_line(&guest(&longest)).unwrap().len(), LIMIT);
        let error = command_line(&guest(&format!("{longest}k"))).unwrap_err();
        assert!(matches!(
            error,
            Error::CommandLineTooLong { length: 2048, .. }
        ));
    }
}
