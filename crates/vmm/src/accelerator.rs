//! Whether guests can run on the processor itself.
//!
//! /dev/kvm alone does not tell: there are hosts, virtual ones mostly, where it opens and
//! answers but no guest ever boots, because the processor does not offer what KVM builds on.

use std::io;

use rustix::fs::{Mode, OFlags};
use sistemo_model::Accelerator;

/// An accelerator, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Why, for users: `the processor shows neither vmx nor svm`.
    pub reason: String,
}

/// Chooses KVM where /dev/kvm opens for reading and writing and /proc/cpuinfo shows `vmx`
/// (Intel) or `svm` (AMD), else TCG.
#[must_use]
pub fn choose() -> Choice {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/kvm", flags, Mode::empty());
    // A host without a readable /proc/cpuinfo shows no flag.
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    decide(&processor, device.map(drop).map_err(io::Error::from))
}

fn decide(processor: &str, device: io::Result<()>) -> Choice {
    let tcg = |reason| Choice {
        accelerator: Accelerator::Tcg,
        reason,
    };
    // The flags of the first processor; the others have the same.
    let flags = processor
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "flags")
        .map_or("", |(_, flags)| flags);
    let flag = flags
        .split_whitespace()
        .find(|flag| matches!(*flag, "vmx" | "svm"));
    match (flag, device) {
        (Some(flag), Ok(())) => Choice {
            accelerator: Accelerator::Kvm,
            reason: format!("/dev/kvm opens and the processor has {flag}"),
        },
        (Some(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            tcg("there is no /dev/kvm".to_owned())
        }
        (Some(_), Err(error)) => tcg(format!("/dev/kvm cannot be opened: {error}")),
        (None, _) => tcg("the processor shows neither vmx nor svm".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vmx sse2\nvmx flags\t: ept\n";
    const AMD: &str = "processor\t: 0\nflags\t\t: fpu sse2 svm\n";
    const GUEST: &str = "processor\t: 0\nflags\t\t: fpu vmx_like\nvmx flags\t: vmx\n";

    #[test]
    fn kvm_needs_the_device_and_the_processor() {
        for (processor, flag) in [(INTEL, "vmx"), (AMD, "svm")] {
            let choice = decide(processor, Ok(()));
            assert_eq!(choice.accelerator, Accelerator::Kvm);
            assert!(choice.reason.ends_with(flag), "{}", choice.reason);
        }
    }

    #[test]
    fn an_open_device_is_not_enough() {
        for processor in [GUEST, ""] {
            let choice = decide(processor, Ok(()));
            assert_eq!(choice.accelerator, Accelerator::Tcg);
            assert_eq!(choice.reason, "the processor shows neither vmx nor svm");
        }
    }

    #[test]
    fn a_closed_device_is_told_from_a_missing_one() {
        let denied = decide(INTEL, Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(denied.accelerator, Accelerator::Tcg);
        assert_eq!(
            denied.reason,
            "/dev/kvm cannot be opened: permission denied"
        );
        let missing = decide(AMD, Err(io::ErrorKind::NotFound.into()));
        assert_eq!(missing.reason, "there is no /dev/kvm");
    }
}
