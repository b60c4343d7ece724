//! Which QEMU this host has.

use std::path::Path;
use std::time::Duration;

use sistemo_host::program::{Program, ProgramError};

use crate::VmmError;

/// The oldest QEMU that will do: the first whose `-device` takes JSON.
const NEEDED: (u32, u32) = (6, 2);
const NEEDED_TEXT: &str = "6.2";
const LIMIT: Duration = Duration::from_secs(30);

/// Asks a QEMU for its version, such as `7.2.22`.
pub(super) fn version(program: &Program) -> Result<String, VmmError> {
    let name = name_of(program.path());
    let output = Program::at(program.path())
        .arg("--version")
        .time_limit(LIMIT)
        .run();
    let output = output.map_err(|source| match source {
        ProgramError::NotInstalled { name } => VmmError::NotInstalled { program: name },
        source => VmmError::Probe {
            program: name.clone(),
            source,
        },
    })?;
    let version = parse(&output.text());
    if version.numbers < Some(NEEDED) {
        return Err(VmmError::TooOld {
            program: name,
            version: version.text,
            needed: NEEDED_TEXT,
        });
    }
    Ok(version.text)
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[derive(Debug, PartialEq, Eq)]
struct Version {
    text: String,
    /// Major and minor; `None`, which is older than any, where the text holds none.
    numbers: Option<(u32, u32)>,
}

fn parse(output: &str) -> Version {
    let text = output
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or("unknown")
        .to_owned();
    let mut parts = text.split('.').map(str::parse);
    let numbers = match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    Version { text, numbers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_says_them() {
        for (output, text, numbers) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright",
                "7.2.22",
                Some((7, 2)),
            ),
            ("QEMU emulator version 10.0.2\n", "10.0.2", Some((10, 0))),
            (
                "QEMU emulator version 11.0.50 (v11-1-g0)\n",
                "11.0.50",
                Some((11, 0)),
            ),
            ("something else", "unknown", None),
        ] {
            let version = parse(output);
            assert_eq!((version.text.as_str(), version.numbers), (text, numbers));
        }
        assert!(Some((10, 0)) > Some(NEEDED) && None < Some(NEEDED));
    }

    #[test]
    fn a_missing_qemu_is_named() {
        let error = version(&Program::at(Path::new("/no/qemu-system-x86_64"))).unwrap_err();
        assert_eq!(error.to_string(), "qemu-system-x86_64 is not installed");
    }

    #[test]
    fn what_cannot_tell_its_version_will_not_do() {
        let error = version(&Program::find("true").unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "true is version unknown; at least 6.2 is needed"
        );
    }
}
