//! The product's own SSH key, which every guest lets in.

use std::path::PathBuf;

use serde::Serialize;
use sistemo_catalog::Lockable;
use sistemo_host::directory::Directory;
use sistemo_host::program::Program;

use crate::engine::Engine;
use crate::error::{Error, Result};

const KEY: &str = "sistemo_key";
const KEY_LIMIT: u64 = 16 << 10;

/// The key that every guest lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SshKey {
    /// The public key, one line as in `authorized_keys`.
    pub public: String,
    /// The file of the private key.
    pub private_path: PathBuf,
    /// The file of the public key.
    pub public_path: PathBuf,
}

impl Engine {
    /// The product's own SSH key, made at its first use.
    ///
    /// # Errors
    /// Where `ssh-keygen` is missing or the key cannot be kept.
    pub fn ssh_key(&self) -> Result<SshKey> {
        let keep = |source| Error::File {
            action: "keep the SSH key".to_owned(),
            source,
        };
        let (directory, _) = Directory::create(&self.data_dir().join("ssh")).map_err(keep)?;
        let public = format!("{KEY}.pub");
        if !directory.contains(&public).map_err(keep)? {
            self.make_key(&directory)?;
        }
        let text = directory.read(&public, KEY_LIMIT).map_err(keep)?;
        Ok(SshKey {
            public: String::from_utf8_lossy(&text).trim().to_owned(),
            private_path: directory.path_of(KEY),
            public_path: directory.path_of(&public),
        })
    }

    /// Makes the key under temporary names. The public half gets its name last: where it is
    /// there, both are.
    fn make_key(&self, directory: &Directory) -> Result<()> {
        let keep = |source| Error::File {
            action: "keep the SSH key".to_owned(),
            source,
        };
        let make = |source| Error::Program {
            action: "make the SSH key",
            source,
        };
        let held = self.locks.acquire(&Lockable::SshKey, self.purpose())?;
        let public = format!("{KEY}.pub");
        if directory.contains(&public).map_err(keep)? {
            return Ok(());
        }
        let temporary = format!("{KEY}.new");
        let temporary_public = format!("{temporary}.pub");
        let (temporary, temporary_public) = (temporary.as_str(), temporary_public.as_str());
        // Without its public half, a private key is one whose making was cut short.
        for leftover in [temporary, temporary_public, KEY] {
            let _ = directory.unlink(leftover).map_err(keep)?;
        }
        Program::find("ssh-keygen")
            .map_err(make)?
            .inherit(&held)
            .map_err(make)?
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "sistemo", "-f"])
            .arg(directory.path_of(temporary))
            .run()
            .map_err(make)?;
        directory.publish(temporary, KEY).map_err(keep)?;
        directory.publish(temporary_public, &public).map_err(keep)
    }
}
