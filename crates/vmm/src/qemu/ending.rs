//! What a QEMU that has ended left in its logs.
//!
//! Two things tell how it ended. The trace event `qemu_system_shutdown_request`, which we ask
//! for, writes its cause as a number; and a signal, which does not pass there, is announced on
//! standard error (both in QEMU's runstate.c).

use std::io::{Read, Seek, SeekFrom};

use sistemo_host::directory::{Directory, FileError, Open};
use sistemo_model::StopHow;

/// QEMU's trace, `-D`.
pub(super) const TRACE: &str = "qemu.log";
/// QEMU's standard output and error.
pub(super) const MESSAGES: &str = "qemu.err";

const TAIL: u64 = 64 << 10;
const KEPT_LINES: usize = 10;
const TRACE_EVENT: &str = "qemu_system_shutdown_request reason=";
const SIGNAL: &str = ": terminating on signal ";

/// `ShutdownCause` of QEMU's qapi/run-state.json, in its order, which is that of the numbers.
///
/// It has been so since QEMU 4.0, which put one in the middle; what came later came at the end.
const CAUSES: [(&str, Option<StopHow>); 9] = [
    ("none", None),
    ("host-error", Some(StopHow::Crashed)),
    ("host-qmp-quit", Some(StopHow::Forced)),
    ("host-qmp-system-reset", Some(StopHow::Forced)),
    ("host-signal", Some(StopHow::Forced)),
    ("host-ui", Some(StopHow::Forced)),
    ("guest-shutdown", Some(StopHow::Clean)),
    ("guest-reset", Some(StopHow::Clean)),
    ("guest-panic", Some(StopHow::Crashed)),
];

/// What a cause means that QEMU gave by name; one we do not know tells nothing.
pub(super) fn from_name(cause: &str) -> Option<StopHow> {
    CAUSES
        .iter()
        .find(|(name, _)| *name == cause)
        .and_then(|(_, how)| *how)
}

fn from_number(cause: usize) -> Option<StopHow> {
    CAUSES.get(cause).and_then(|(_, how)| *how)
}

/// How the last run ended, as far as its logs tell.
pub(super) fn read(directory: &Directory) -> Result<Option<StopHow>, FileError> {
    let (trace, messages) = (tail(directory, TRACE)?, tail(directory, MESSAGES)?);
    Ok(from_logs(&trace, &messages))
}

fn from_logs(trace: &str, messages: &str) -> Option<StopHow> {
    // The first request is the one that QEMU acts on. With -msg timestamp a line begins with
    // process and time.
    let traced = trace.lines().find_map(|line| {
        let (_, number) = line.split_once(TRACE_EVENT)?;
        from_number(number.trim().parse().ok()?)
    });
    let signalled = || {
        let told = |line: &str| line.starts_with("qemu") && line.contains(SIGNAL);
        messages.lines().any(told).then_some(StopHow::Forced)
    };
    traced.or_else(signalled)
}

/// The last lines of what QEMU said, without its own name in front of each.
pub(super) fn last_words(directory: &Directory) -> Result<String, FileError> {
    let messages = tail(directory, MESSAGES)?;
    let lines: Vec<&str> = messages
        .lines()
        .map(|line| {
            line.split_once(": ")
                .filter(|(name, _)| name.starts_with("qemu") && !name.contains(' '))
                .map_or(line, |(_, said)| said)
                .trim()
        })
        .filter(|line| !line.is_empty())
        .collect();
    let kept = lines.len().saturating_sub(KEPT_LINES);
    Ok(lines[kept..].join("\n"))
}

/// The end of a log; nothing where there is no such file.
fn tail(directory: &Directory, name: &str) -> Result<String, FileError> {
    let mut file = match directory.file(name, Open::Read) {
        Err(error) if error.is_not_found() => return Ok(String::new()),
        other => other?,
    };
    let mut content = Vec::new();
    file.metadata()
        .and_then(|meta| file.seek(SeekFrom::Start(meta.len().saturating_sub(TAIL))))
        .and_then(|_| file.take(TAIL).read_to_end(&mut content))
        .map_err(|error| FileError::new("read", directory.path_of(name), error))?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trace_tells_how_it_ended() {
        for (trace, how) in [
            ("", None),
            (
                "qemu_system_shutdown_request reason=2\n",
                Some(StopHow::Forced),
            ),
            (
                "qemu_system_shutdown_request reason=6\n",
                Some(StopHow::Clean),
            ),
            (
                "qemu_system_shutdown_request reason=8\n",
                Some(StopHow::Crashed),
            ),
            ("qemu_system_shutdown_request reason=0\n", None),
            ("qemu_system_shutdown_request reason=99\n", None),
            ("qemu_system_shutdown_request reason=\n", None),
            (
                "17@1795336101.499888:qemu_system_shutdown_request reason=6\n",
                Some(StopHow::Clean),
            ),
            (
                "qemu_system_shutdown_request reason=6\nqemu_system_shutdown_request reason=2\n",
                Some(StopHow::Clean),
            ),
        ] {
            assert_eq!(from_logs(trace, ""), how, "{trace}");
        }
    }

    #[test]
    fn a_signal_is_told_on_standard_error() {
        let told = "qemu-system-x86_64: terminating on signal 15 from pid 1 (/sbin/init)\n";
        assert_eq!(from_logs("", told), Some(StopHow::Forced));
        let other = "qemu-system-x86_64: warning: something\n";
        assert_eq!(from_logs("", other), None);
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(from_name("guest-shutdown"), from_number(6));
        assert_eq!(from_name("guest-panic"), from_number(8));
        assert_eq!(from_name("host-qmp-quit"), from_number(2));
        assert_eq!(from_name("unheard-of"), None);
    }

    #[test]
    fn last_words_come_without_the_speakers_name() {
        let home = tempfile::tempdir().unwrap();
        let directory = Directory::open(home.path()).unwrap();
        assert_eq!(last_words(&directory).unwrap(), "");
        let said = "qemu-system-x86_64: -device x: no such device\nas it is: so\n\n";
        directory.replace(MESSAGES, said.as_bytes()).unwrap();
        assert_eq!(
            last_words(&directory).unwrap(),
            "-device x: no such device\nas it is: so"
        );
    }
}
