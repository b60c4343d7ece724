//! The names of what a volume is made of, in the pool and in its subvolume.

use sistemo_model::{SnapshotName, VolumeId};

/// A volume's data, in its subvolume and in those of its snapshots.
pub(super) const DATA: &str = "data.raw";
/// The subvolume that is being made, in a nursery or workplace.
pub(super) const MADE: &str = "volume";

const NURSERY: &str = ".new";
const WORKPLACE: &str = ".work";
const DOOMED: &str = ".gone";
const DESCRIPTION: &str = ".json";
/// Behind the name of a file that is being replaced; as `Directory::replace` has it.
const PART: &str = ".json.part";
/// Between a volume's ID and the name of its snapshot. No name has the character itself.
const SNAPSHOT: &str = "@";
const TAKEN: &str = ".taken@";
const ID_LENGTH: usize = 36;

/// What something in the pool is to its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its subvolume; where it is, the volume exists.
    Volume,
    /// The subvolume of a snapshot; where it is, the snapshot exists.
    Snapshot(SnapshotName),
    /// The empty file whose time is that of a snapshot.
    Taken(SnapshotName),
    /// The directory in which it is made.
    Nursery,
    /// The directory in which an operation on it works.
    Workplace,
    /// A subvolume that is no more, or will soon be.
    Doomed,
    /// Its description.
    Description,
    /// The rest of a replacement of its description that was killed.
    Part,
}

pub(super) fn volume(id: VolumeId) -> String {
    id.to_string()
}

pub(super) fn snapshot(id: VolumeId, name: &SnapshotName) -> String {
    format!("{id}{SNAPSHOT}{name}")
}

pub(super) fn taken(id: VolumeId, name: &SnapshotName) -> String {
    format!("{id}{TAKEN}{name}")
}

pub(super) fn nursery(id: VolumeId) -> String {
    format!("{id}{NURSERY}")
}

pub(super) fn workplace(id: VolumeId) -> String {
    format!("{id}{WORKPLACE}")
}

pub(super) fn doomed(id: VolumeId) -> String {
    format!("{id}{DOOMED}")
}

pub(super) fn description(id: VolumeId) -> String {
    format!("{id}{DESCRIPTION}")
}

/// The volume that something belongs to, and what it is to it; `None` for what is not ours.
pub(super) fn parse(name: &str) -> Option<(VolumeId, Kind)> {
    let id = name.get(..ID_LENGTH)?.parse().ok()?;
    let rest = name.get(ID_LENGTH..)?;
    let kind = match rest {
        "" => Kind::Volume,
        NURSERY => Kind::Nursery,
        WORKPLACE => Kind::Workplace,
        DOOMED => Kind::Doomed,
        DESCRIPTION => Kind::Description,
        PART => Kind::Part,
        _ => match rest.strip_prefix(TAKEN) {
            Some(name) => Kind::Taken(name.parse().ok()?),
            None => Kind::Snapshot(rest.strip_prefix(SNAPSHOT)?.parse().ok()?),
        },
    };
    Some((id, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_what_it_is() {
        let id = VolumeId::random();
        for (name, kind) in [
            (volume(id), Kind::Volume),
            (nursery(id), Kind::Nursery),
            (workplace(id), Kind::Workplace),
            (doomed(id), Kind::Doomed),
            (description(id), Kind::Description),
            (description(id) + ".part", Kind::Part),
        ] {
            assert_eq!(parse(&name), Some((id, kind)), "{name}");
        }
    }

    #[test]
    fn no_name_of_a_snapshot_is_taken_for_something_else() {
        let id = VolumeId::random();
        let longest = "s".repeat(63);
        for name in [
            "a",
            "a.new",
            "a.work",
            "a.gone",
            "taken",
            "9.json",
            longest.as_str(),
        ] {
            let name: SnapshotName = name.parse().unwrap();
            let kind = Kind::Snapshot(name.clone());
            assert_eq!(parse(&snapshot(id, &name)), Some((id, kind)), "{name}");
            let kind = Kind::Taken(name.clone());
            assert_eq!(parse(&taken(id, &name)), Some((id, kind)), "{name}");
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        let id = VolumeId::random();
        for name in [
            "notes.txt".to_owned(),
            format!("{id}."),
            format!("{id}.ext4"),
            format!("{id}.json.new"),
            format!("{id}@"),
            format!("{id}.taken@"),
            format!("{id}.takena"),
            format!("{id}@-a"),
            format!("{id}@a/b"),
            format!("{id}@{}", "s".repeat(64)),
            format!("{id}x"),
            id.simple(),
            "äöüäöüäöüäöüäöüäöüäöü".to_owned(),
        ] {
            assert_eq!(parse(&name), None, "{name}");
        }
    }
}
