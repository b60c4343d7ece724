//! The names of the files that a volume is made of.

use sistemo_model::{Filesystem, SnapshotName, VolumeId};

/// Behind the name of what does not exist yet: a draft's data, and a snapshot that is being taken.
const DRAFT: &str = ".new";
/// Behind the name of what is to replace a volume's data.
const REPLACEMENT: &str = ".revert";
/// Behind the name of a file that is being replaced; as `Directory::replace` has it.
const PART: &str = ".part";
const ID_LENGTH: usize = 36;

/// What a file in the pool is to its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its data; where it is, the volume exists.
    Data,
    /// The data of a volume that does not exist yet.
    Draft,
    /// Its description.
    Description,
    /// The rest of a replacement of its description that was killed.
    Part,
    /// The data of a snapshot; where it is, the snapshot exists.
    Snapshot(SnapshotName),
    /// The rest of a snapshot whose taking was killed.
    SnapshotDraft,
    /// The rest of a revert that was killed: what was to become its data.
    Replacement,
}

impl Kind {
    /// Whether it is of no use to anybody, beside a volume or without one, once the operation
    /// that made it is over.
    pub(super) fn is_leftover(&self) -> bool {
        matches!(self, Kind::SnapshotDraft | Kind::Replacement)
    }
}

/// What follows the ID in the name of the data of a volume made with this filesystem.
///
/// The name is for people. It stays as it is when a guest makes another filesystem.
pub(super) fn suffix(filesystem: Filesystem) -> &'static str {
    match filesystem {
        Filesystem::Ext4 => "ext4",
        Filesystem::Xfs => "xfs",
        Filesystem::Btrfs => "btrfs",
        Filesystem::None => "raw",
    }
}

pub(super) fn data(id: VolumeId, filesystem: Filesystem) -> String {
    format!("{id}.{}", suffix(filesystem))
}

pub(super) fn draft(id: VolumeId, filesystem: Filesystem) -> String {
    data(id, filesystem) + DRAFT
}

/// The name of a volume's snapshot; `data` is the name of the volume's data.
pub(super) fn snapshot(id: VolumeId, name: &SnapshotName, data: &str) -> String {
    let suffix = data.rsplit('.').next().unwrap_or_default();
    format!("{id}@{name}.{suffix}")
}

/// The name that a snapshot has while it is taken.
pub(super) fn snapshot_draft(snapshot: &str) -> String {
    snapshot.to_owned() + DRAFT
}

/// The name of what is to replace a volume's data.
pub(super) fn replacement(data: &str) -> String {
    data.to_owned() + REPLACEMENT
}

/// All names that a snapshot can have.
pub(super) fn every_snapshot(id: VolumeId, name: &SnapshotName) -> impl Iterator<Item = String> {
    Filesystem::ALL
        .into_iter()
        .map(move |fs| format!("{id}@{name}.{}", suffix(fs)))
}

pub(super) fn description(id: VolumeId) -> String {
    format!("{id}.json")
}

pub(super) fn part(id: VolumeId) -> String {
    description(id) + PART
}

/// All names that the data of a volume can have.
pub(super) fn every_data(id: VolumeId) -> impl Iterator<Item = String> {
    Filesystem::ALL.into_iter().map(move |fs| data(id, fs))
}

/// All names that the data of a draft can have.
pub(super) fn every_draft(id: VolumeId) -> impl Iterator<Item = String> {
    Filesystem::ALL.into_iter().map(move |fs| draft(id, fs))
}

/// The volume that a file belongs to, and what it is to it; `None` for a file that is not ours.
pub(super) fn parse(name: &str) -> Option<(VolumeId, Kind)> {
    let id = name.get(..ID_LENGTH)?.parse().ok()?;
    let rest = name.get(ID_LENGTH..)?;
    let is_data = |word: &str| Filesystem::ALL.into_iter().any(|fs| suffix(fs) == word);
    if let Some(rest) = rest.strip_prefix('@') {
        // The name of a snapshot may have points in it: what comes last is the suffix.
        let (finished, kind): (_, fn(SnapshotName) -> Kind) = match rest.strip_suffix(DRAFT) {
            Some(finished) => (finished, |_| Kind::SnapshotDraft),
            None => (rest, Kind::Snapshot),
        };
        let (name, _) = finished
            .rsplit_once('.')
            .filter(|(_, suffix)| is_data(suffix))?;
        return Some((id, kind(name.parse().ok()?)));
    }
    let rest = rest.strip_prefix('.')?;
    let kind = match rest {
        "json" => Kind::Description,
        "json.part" => Kind::Part,
        _ if is_data(rest) => Kind::Data,
        _ if rest.strip_suffix(DRAFT).is_some_and(is_data) => Kind::Draft,
        _ if rest.strip_suffix(REPLACEMENT).is_some_and(is_data) => Kind::Replacement,
        _ => return None,
    };
    Some((id, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_what_it_is() {
        let id = VolumeId::random();
        for name in every_data(id) {
            assert_eq!(parse(&name), Some((id, Kind::Data)), "{name}");
        }
        for name in every_draft(id) {
            assert_eq!(parse(&name), Some((id, Kind::Draft)), "{name}");
        }
        assert_eq!(parse(&description(id)), Some((id, Kind::Description)));
        assert_eq!(parse(&part(id)), Some((id, Kind::Part)));
        for name in every_data(id) {
            let name = replacement(&name);
            assert_eq!(parse(&name), Some((id, Kind::Replacement)), "{name}");
        }
    }

    #[test]
    fn a_snapshot_may_have_any_name() {
        let id = VolumeId::random();
        let longest = "x".repeat(63);
        for word in ["1", "a.b", "x.ext4", "x.ext4.new", "x.new", &longest] {
            let name: SnapshotName = word.parse().unwrap();
            for data in every_data(id) {
                let file = snapshot(id, &name, &data);
                assert!(
                    every_snapshot(id, &name).any(|known| known == file),
                    "{file}"
                );
                assert_eq!(
                    parse(&file),
                    Some((id, Kind::Snapshot(name.clone()))),
                    "{file}"
                );
                let draft = snapshot_draft(&file);
                assert_eq!(parse(&draft), Some((id, Kind::SnapshotDraft)), "{draft}");
                // NAME_MAX of every filesystem there is.
                assert!(draft.len() <= 255);
            }
        }
    }

    #[test]
    fn the_default_filesystem_gives_the_documented_name() {
        let id = VolumeId::random();
        assert_eq!(data(id, Filesystem::Ext4), format!("{id}.ext4"));
    }

    #[test]
    fn other_names_are_not_ours() {
        let id = VolumeId::random();
        let upper = id.to_string().to_uppercase();
        for name in [
            "notes.txt".to_owned(),
            format!("{id}"),
            format!("{id}."),
            format!("{id}.ntfs"),
            format!("{id}.new"),
            format!("{id}.json.new"),
            format!("{id}.ext4.new.new"),
            format!("{id}-ext4"),
            format!("{id}.json.revert"),
            format!("{id}.ext4.new.revert"),
            format!("{id}@.ext4"),
            format!("{id}@one"),
            format!("{id}@one.ntfs"),
            format!("{id}@one.ext4.revert"),
            format!("{id}@../one.ext4"),
            format!("{id}@{}.ext4", "x".repeat(64)),
            format!("{}.ext4", id.simple()),
            format!("{upper}F.ext4"),
            "äöüäöüäöüäöüäöüäöüäöü.ext4".to_owned(),
        ] {
            assert_eq!(parse(&name), None, "{name}");
        }
    }
}
