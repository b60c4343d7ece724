//! JSON documents with a version, as pools keep them on disk.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No document of ours comes near this; a longer one is not ours.
pub(crate) const LIMIT: u64 = 64 << 10;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record<T> {
    version: Version,
    #[serde(flatten)]
    body: T,
}

/// The version that this program writes, and the only one that it reads.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Version;

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(version: u32) -> Result<Version, String> {
        if version == VERSION {
            Ok(Version)
        } else {
            Err(format!("version {version} is not known, only {VERSION} is"))
        }
    }
}

impl From<Version> for u32 {
    fn from(_: Version) -> u32 {
        VERSION
    }
}

/// The document as text that people can read too.
pub(crate) fn encode(body: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let version = Version;
    let mut text = serde_json::to_vec_pretty(&Record { version, body })?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a document of the known version. Fields that it does not know are passed over.
pub(crate) fn decode<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Record<T>>(text).map(|record| record.body)
}
