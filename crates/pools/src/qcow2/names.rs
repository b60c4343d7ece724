//! The names of the files that a volume is made of.

use sistemo_model::{SnapshotName, VolumeId};

const DATA: &str = ".qcow2";
/// Behind the name of a file that is not published yet.
const NEW: &str = ".new";
const ID_LENGTH: usize = 36;

/// What a file in the pool is to its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Data of this generation: the highest is what the volume is now, the others are layers.
    Data(u64),
    /// A snapshot.
    Snapshot(SnapshotName),
    /// One of these two before it is published.
    New,
    /// The description; where it is, the volume exists.
    Description,
    /// The description before the volume exists, or the rest of writing one.
    NewDescription,
    /// The rest of a replacement of the description that was killed.
    Part,
    /// The description of a volume whose removal has begun.
    Gone,
    /// The description of a volume that is removed, but of which others use layers.
    Layers,
}

pub(super) fn data(id: VolumeId, generation: u64) -> String {
    format!("{id}.{generation}{DATA}")
}

pub(super) fn snapshot(id: VolumeId, name: &SnapshotName) -> String {
    format!("{id}@{name}{DATA}")
}

/// The name of a file before it is published.
pub(super) fn new(name: &str) -> String {
    format!("{name}{NEW}")
}

pub(super) fn description(id: VolumeId) -> String {
    format!("{id}.json")
}

pub(super) fn new_description(id: VolumeId) -> String {
    new(&description(id))
}

pub(super) fn gone(id: VolumeId) -> String {
    format!("{id}.json.gone")
}

pub(super) fn layers(id: VolumeId) -> String {
    format!("{id}.layers")
}

/// What `Directory::replace` may leave of the two kinds of description.
pub(super) fn parts(id: VolumeId) -> [String; 2] {
    [format!("{id}.json.part"), format!("{id}.json{NEW}.part")]
}

/// The volume and the generation of a data file; `None` for any other file.
pub(super) fn parse_data(name: &str) -> Option<(VolumeId, u64)> {
    match parse(name)? {
        (id, Kind::Data(generation)) => Some((id, generation)),
        _ => None,
    }
}

/// The volume that a file belongs to, and what it is to it; `None` for a file that is not ours.
pub(super) fn parse(name: &str) -> Option<(VolumeId, Kind)> {
    let id = name.get(..ID_LENGTH)?.parse::<VolumeId>().ok()?;
    let rest = name.get(ID_LENGTH..)?;
    let kind = match rest {
        ".json" => Kind::Description,
        ".json.new" | ".json.new.part" => Kind::NewDescription,
        ".json.part" => Kind::Part,
        ".json.gone" => Kind::Gone,
        ".layers" => Kind::Layers,
        _ => match rest.strip_suffix(NEW) {
            Some(rest) => published(rest).map(|_| Kind::New)?,
            None => published(rest)?,
        },
    };
    // An ID that is written otherwise is another file to us.
    name.starts_with(&id.to_string()).then_some((id, kind))
}

fn published(rest: &str) -> Option<Kind> {
    let rest = rest.strip_suffix(DATA)?;
    if let Some(name) = rest.strip_prefix('@') {
        return name.parse().ok().map(Kind::Snapshot);
    }
    let digits = rest.strip_prefix('.')?;
    let generation: u64 = digits.parse().ok()?;
    (generation > 0 && generation.to_string() == digits).then_some(Kind::Data(generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_says_what_it_is() {
        let id = VolumeId::random();
        for name in ["a", "2026-11-24_08.00", "a.qcow2", "a.qcow2.new", "x.json"] {
            let name: SnapshotName = name.parse().unwrap();
            let file = snapshot(id, &name);
            assert_eq!(parse(&file), Some((id, Kind::Snapshot(name))));
            assert_eq!(parse(&new(&file)), Some((id, Kind::New)));
        }
        assert_eq!(parse(&data(id, 12)), Some((id, Kind::Data(12))));
        assert_eq!(parse_data(&data(id, 12)), Some((id, 12)));
        assert_eq!(parse(&new(&data(id, 1))), Some((id, Kind::New)));
        assert_eq!(parse(&description(id)), Some((id, Kind::Description)));
        let new = new_description(id);
        assert_eq!(parse(&new), Some((id, Kind::NewDescription)));
        assert_eq!(parse(&gone(id)), Some((id, Kind::Gone)));
        assert_eq!(parse(&layers(id)), Some((id, Kind::Layers)));
        let [part, new_part] = parts(id);
        assert_eq!(parse(&part), Some((id, Kind::Part)));
        assert_eq!(parse(&new_part), Some((id, Kind::NewDescription)));
    }

    #[test]
    fn other_names_are_not_ours() {
        let id = VolumeId::random();
        let upper = id.to_string().to_uppercase();
        for name in [
            "notes.txt".to_owned(),
            format!("{id}"),
            format!("{id}.qcow2"),
            format!("{id}.0.qcow2"),
            format!("{id}.01.qcow2"),
            format!("{id}.+1.qcow2"),
            format!("{id}.1.qcow2.new.new"),
            format!("{id}.99999999999999999999.qcow2"),
            format!("{id}.ext4"),
            format!("{id}@.qcow2"),
            format!("{id}@../x.qcow2"),
            format!("{id}.json.new.new"),
            format!("{}.1.qcow2", id.simple()),
            format!("{upper}F.1.qcow2"),
            format!("../{id}.1.qcow2"),
            "äöüäöüäöüäöüäöüäöüäöü.1.qcow2".to_owned(),
        ] {
            assert_eq!(parse(&name), None, "{name}");
        }
    }
}
