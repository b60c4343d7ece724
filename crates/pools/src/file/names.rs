//! The names of the files that a volume is made of.

use sistemo_model::{Filesystem, VolumeId};

/// Behind the name of a draft's data.
const DRAFT: &str = ".new";
/// Behind the name of a file that is being replaced; as `Directory::replace` has it.
const PART: &str = ".part";
const ID_LENGTH: usize = 36;

/// What a file in the pool is to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its data; where it is, the volume exists.
    Data,
    /// The data of a volume that does not exist yet.
    Draft,
    /// Its description.
    Description,
    /// The rest of a replacement of its description that was killed.
    Part,
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
    let rest = name.get(ID_LENGTH..)?.strip_prefix('.')?;
    let is_data = |word: &str| Filesystem::ALL.into_iter().any(|fs| suffix(fs) == word);
    let kind = match rest {
        "json" => Kind::Description,
        "json.part" => Kind::Part,
        _ if is_data(rest) => Kind::Data,
        _ if rest.strip_suffix(DRAFT).is_some_and(is_data) => Kind::Draft,
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
            format!("{}.ext4", id.simple()),
            format!("{upper}F.ext4"),
            "äöüäöüäöüäöüäöüäöüäöü.ext4".to_owned(),
        ] {
            assert_eq!(parse(&name), None, "{name}");
        }
    }
}
