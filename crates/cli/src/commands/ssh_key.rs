//! `sistemo ssh-key`

use crate::failure::Failure;
use crate::session::Session;

/// Prints the public key that machines let in; makes the pair on first use.
pub(crate) fn run(session: &Session) -> Result<(), Failure> {
    let key = session.engine()?.ssh_key()?;
    session.output.note(&format!(
        "the private key is {}",
        key.private_path.display()
    ));
    session.output.text(key.public.trim_end(), &key)
}
