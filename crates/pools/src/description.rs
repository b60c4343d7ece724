//! What stands beside every volume in its pool.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sistemo_model::{
    Boot, Bytes, Filesystem, History, PoolName, Role, Timestamp, VolumeId, VolumeName,
};

use crate::record;

/// What a pool records about a volume, beside its data: enough to put the volume into an empty
/// catalogue.
///
/// On disk it is one JSON object with these fields and `"version": 1`, replaced atomically.
/// The catalogue is what commands go by; this is what it can be rebuilt from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Its identifier.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Its virtual size.
    pub size: Bytes,
    /// The filesystem it was given when it was made.
    pub filesystem: Filesystem,
    /// Whether it was made to boot from.
    pub role: Role,
    /// What it boots with, for a volume that was made from an image with a kernel of its own.
    pub boot: Option<Boot>,
    /// When it was made.
    pub created: Timestamp,
    /// What is known of its past, and what is to be kept of it. Left out where that is nothing.
    #[serde(default, skip_serializing_if = "History::is_empty")]
    pub history: Box<History>,
    /// Whether its making is not over: a driver whose volumes exist as soon as they are made
    /// keeps a draft so. Left out where it is `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// The pool it is being moved from: that still has the volume, and what is here is a part of
    /// it. Left out of a volume that is where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_from: Option<PoolName>,
}

impl Description {
    /// The description as the protocol of external drivers has it.
    ///
    /// # Errors
    /// None that a description could lead to.
    pub fn to_value(&self) -> serde_json::Result<Value> {
        record::encode(self).and_then(|text| serde_json::from_slice(&text))
    }

    /// Reads a description that was given out as a value; one of another volume is an error.
    ///
    /// # Errors
    /// Where it is not a description of that volume.
    pub fn from_value(value: &Value, volume: VolumeId) -> serde_json::Result<Description> {
        serde_json::to_vec(value).and_then(|text| Description::from_json(&text, volume))
    }

    pub(crate) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        record::encode(self)
    }

    /// Reads the description that stands beside `volume`; one of another volume, as a file that
    /// was copied by hand holds, is an error.
    pub(crate) fn from_json(text: &[u8], volume: VolumeId) -> serde_json::Result<Description> {
        let description: Description = record::decode(text)?;
        if description.id == volume {
            Ok(description)
        } else {
            let found = description.id;
            Err(serde::de::Error::custom(format!(
                "it describes volume {found}"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use sistemo_model::Digest;

    use super::*;

    fn description() -> Description {
        Description {
            id: "a1b2c3d4-5678-4abc-8ef0-123456789abc".parse().unwrap(),
            name: "db1-root".parse().unwrap(),
            size: Bytes::from_mib(2048),
            filesystem: Filesystem::Ext4,
            role: Role::Root,
            boot: Some(Boot {
                kernel: Digest::from_bytes([0xa5; 32]),
                initrd: None,
            }),
            created: "2026-11-22T08:00:00Z".parse().unwrap(),
            history: Box::default(),
            unfinished: false,
            moving_from: None,
        }
    }

    #[test]
    fn it_is_versioned_json_that_people_can_read() {
        let text = String::from_utf8(description().to_json().unwrap()).unwrap();
        let kernel = "a5".repeat(32);
        assert_eq!(
            text,
            format!(
                r#"{{
  "version": 1,
  "id": "a1b2c3d4-5678-4abc-8ef0-123456789abc",
  "name": "db1-root",
  "size": 2147483648,
  "filesystem": "ext4",
  "role": "root",
  "boot": {{
    "kernel": "{kernel}",
    "initrd": null
  }},
  "created": "2026-11-22T08:00:00Z"
}}
"#
            )
        );
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let text = description().to_json().unwrap();
        let read = Description::from_json(&text, description().id).unwrap();
        assert_eq!(read, description());
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let text = String::from_utf8(description().to_json().unwrap()).unwrap();
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        let error = Description::from_json(newer.as_bytes(), description().id).unwrap_err();
        assert!(
            error.to_string().contains("version 2 is not known"),
            "{error}"
        );
    }

    #[test]
    fn the_description_of_another_volume_is_refused() {
        let text = description().to_json().unwrap();
        let error = Description::from_json(&text, VolumeId::random()).unwrap_err();
        assert!(error.to_string().contains("a1b2c3d4"), "{error}");
    }

    #[test]
    fn half_a_description_and_a_bad_name_are_refused() {
        let text = description().to_json().unwrap();
        assert!(Description::from_json(&text[..text.len() / 2], description().id).is_err());
        let text = String::from_utf8(text)
            .unwrap()
            .replace("db1-root", "../db1");
        assert!(Description::from_json(text.as_bytes(), description().id).is_err());
    }
}
