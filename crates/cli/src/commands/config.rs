//! `sistemo config`

use sistemo::settings::SettingLine;

use crate::failure::Failure;
use crate::output::Shown;
use crate::output::table::{Cell, Column, Table};
use crate::session::Session;

/// Shows the settings in effect. Nothing is opened or made.
pub(crate) fn run(session: &Session) -> Result<(), Failure> {
    session
        .output
        .list(&session.settings()?.lines(), "no settings")
}

impl Shown for SettingLine {
    fn table(lines: &[SettingLine]) -> Table {
        let mut table = Table::new(["KEY", "VALUE", "FROM"].map(Column::new).to_vec());
        for line in lines {
            table.row(
                [line.key, &line.value, &line.origin]
                    .map(Cell::new)
                    .to_vec(),
            );
        }
        table
    }
}
