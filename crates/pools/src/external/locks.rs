//! What keeps two calls off one volume when the process that made the first was killed.
//!
//! A driver may outlive whoever called it, and a recovery must not race it. Each call that
//! changes something therefore holds a lock in the pool's directory, which the driver inherits.
//! Where it is held and who took it is gone, what is to be seen of a volume is not yet what it
//! will be.
//!
//! There is a fixed number of locks, which volumes share by their IDs; their files are made as
//! they are needed and never unlinked.

use std::path::Path;
use std::time::Duration;

use sistemo_host::directory::{Directory, FileError};
use sistemo_host::lock::{Lock, LockError};
use sistemo_model::VolumeId;

use super::protocol::Operation;

/// The directory of the locks, within the pool's.
const LOCKS: &str = ".sistemo-locks";
/// How many there are: few enough to be of no weight, enough that two volumes seldom share one.
const SLOTS: u32 = 1024;
/// The name of the lock of what concerns no volume.
const POOL: &str = "pool";

/// Takes the locks that an operation needs.
pub(super) fn acquire(
    directory: &Path,
    operation: &Operation,
    driver: &str,
    patience: Duration,
) -> Result<Vec<Lock>, LockError> {
    if !operation.changes() {
        return Ok(Vec::new());
    }
    let place = directory.join(LOCKS);
    let _ = Directory::create(&place)?;
    let volumes = operation.volume().into_iter().chain(operation.source());
    let mut names: Vec<_> = volumes.map(slot).collect();
    if names.is_empty() {
        names.push(POOL.to_owned());
    }
    // Whoever takes two takes them in this order.
    names.sort_unstable();
    names.dedup();
    let volume = operation.volume().map(|volume| format!(" {volume}"));
    let purpose = format!(
        "driver {driver}: {}{}",
        operation.word(),
        volume.unwrap_or_default()
    );
    names
        .iter()
        .map(|name| Lock::acquire(&place.join(name), &purpose, patience))
        .collect()
}

/// Waits until no driver works on a volume whose caller is gone. One whose caller lives is none
/// of our business: whoever must not meet it has the volume's own lock.
pub(super) fn await_orphans(
    directory: &Path,
    volume: VolumeId,
    patience: Duration,
) -> Result<(), LockError> {
    let lock = directory.join(LOCKS).join(slot(volume));
    Lock::await_orphans(&lock, patience)
}

/// Takes away what a first use that failed made.
pub(super) fn remove(directory: &Path) -> Result<(), FileError> {
    let place = directory.join(LOCKS);
    match std::fs::remove_dir_all(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", place, error))
        }
        _ => Ok(()),
    }
}

fn slot(volume: VolumeId) -> String {
    // The IDs are random: their first digits are as good as any hash.
    let digits = volume.simple();
    let number = u32::from_str_radix(&digits[..8], 16).unwrap_or(0);
    format!("{:03x}", number % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remove_of(volume: VolumeId) -> Operation {
        Operation::Remove { volume }
    }

    #[test]
    fn the_second_call_for_a_volume_waits_and_is_told_for_whom() {
        let home = tempfile::tempdir().unwrap();
        let volume = VolumeId::random();
        let take = |operation| acquire(home.path(), &operation, "x", Duration::ZERO);
        let held = take(remove_of(volume)).unwrap();
        assert_eq!(held.len(), 1);
        let error = take(Operation::Close { volume }).unwrap_err();
        let told = format!("driver x: remove {volume}");
        assert!(error.to_string().contains(&told), "{error}");
        assert!(take(Operation::Inspect { volume }).unwrap().is_empty());
        await_orphans(home.path(), volume, Duration::ZERO).unwrap();
        drop(held);
        assert_eq!(take(remove_of(volume)).unwrap().len(), 1);
    }

    #[test]
    fn a_clone_holds_both_volumes_and_one_that_share_a_slot_once() {
        let home = tempfile::tempdir().unwrap();
        let clone = |volume: &str, source: &str| Operation::Clone {
            volume: volume.parse().unwrap(),
            size: sistemo_model::Bytes::MINIMUM,
            description: serde_json::Value::Null,
            source: source.parse().unwrap(),
            source_snapshot: None,
        };
        let one = "00000001-0000-4000-8000-000000000000";
        let two = "00000002-0000-4000-8000-000000000000";
        let one_again = "00000401-0000-4000-8000-000000000000";
        for (operation, count) in [(clone(two, one), 2), (clone(one, one_again), 1)] {
            let held = acquire(home.path(), &operation, "x", Duration::ZERO).unwrap();
            assert_eq!(held.len(), count);
        }
    }
}
