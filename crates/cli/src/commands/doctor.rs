//! `sistemo doctor`

use std::process::ExitCode;

use sistemo::doctor::{Check, Verdict, examine};

use crate::failure::Failure;
use crate::output::table::{Cell, Column, Table};
use crate::output::{BAD, GOOD, NOTABLE, Shown};
use crate::session::Session;

/// Checks the host. The status is 0 where a deploy would work, else 1.
pub(crate) fn run(session: &Session) -> Result<ExitCode, Failure> {
    let checks = examine(&session.settings()?);
    session.output.list(&checks, "nothing was checked")?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Failed);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Shown for Check {
    fn table(checks: &[Check]) -> Table {
        let columns = ["CHECK", "VERDICT", "FOUND", "ADVICE"];
        let mut table = Table::new(columns.map(Column::new).to_vec());
        for check in checks {
            let (verdict, style) = match check.verdict {
                Verdict::Ok => ("ok", GOOD),
                Verdict::Warning => ("warning", NOTABLE),
                Verdict::Failed => ("failed", BAD),
            };
            table.row(vec![
                Cell::new(check.name),
                Cell::styled(verdict, style),
                Cell::new(&check.found),
                Cell::maybe(check.advice.as_ref()),
            ]);
        }
        table
    }
}
