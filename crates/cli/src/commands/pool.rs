//! `sistemo pool …`

use clap::{Args, Subcommand};
use sistemo::model::{Bytes, PoolName};
use sistemo::pools::{NewPool, PoolView};
use sistemo::{Cost, DriverInfo};

use crate::arguments::{size, value};
use crate::failure::Failure;
use crate::output::details::Details;
use crate::output::table::{Cell, Column, Table};
use crate::output::{BAD, Described, PLAIN, Shown};
use crate::session::Session;

/// A verb for pools.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List pools
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about a pool
    Show {
        /// The pool's name
        #[arg(value_name = "POOL", value_parser = value::<PoolName>)]
        pool: PoolName,
    },
    /// Add a pool to storage.conf
    ///
    /// It is tried first; where it does not work, nothing changes. The last component of its
    /// directory is made where it is missing.
    #[command(after_help = "\
Examples:
  sistemo pool add fast file -O dir_path=/mnt/nvme/sistemo
  sistemo volume create 5G --name pgdata -P fast")]
    Add(Add),
    /// Change a pool's options in storage.conf
    ///
    /// Sistemo moves no data: a pool that holds volumes can only go where they are already, and
    /// the machines that hold them must be stopped.
    #[command(after_help = "\
Example:
  sistemo pool set fast dir_path=/mnt/nvme2/sistemo")]
    Set(Set),
    /// Remove a pool from storage.conf
    ///
    /// A pool that holds volumes cannot be removed. Its directory stays.
    #[command(
        visible_alias = "rm",
        after_help = "\
Example:
  sistemo pool remove fast"
    )]
    Remove {
        /// The pool's name
        #[arg(value_name = "POOL", value_parser = value::<PoolName>)]
        pool: PoolName,
    },
    /// Make a pool's own filesystem larger
    ///
    /// Only pools that have a filesystem of their own in one file can be resized; volumes live on
    /// meanwhile. It never shrinks.
    #[command(after_help = "\
Example:
  sistemo pool resize fast 200G")]
    Resize {
        /// The pool's name
        #[arg(value_name = "POOL", value_parser = value::<PoolName>)]
        pool: PoolName,
        /// How large it is to become
        #[arg(value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
        size: Bytes,
    },
    /// List the drivers that pools can have, with their options
    Drivers,
}

/// What `pool add` takes.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name
    #[arg(value_name = "NAME", value_parser = value::<PoolName>)]
    name: PoolName,
    /// What runs it; `sistemo pool drivers` lists them
    #[arg(value_name = "DRIVER")]
    driver: String,
    /// An option of the driver; may be given again
    #[arg(short = 'O', long = "option", value_name = "KEY=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
}

/// What `pool set` takes.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The pool's name
    #[arg(value_name = "POOL", value_parser = value::<PoolName>)]
    pool: PoolName,
    /// What to change
    #[arg(value_name = "KEY=VALUE", value_parser = pair, required = true)]
    changes: Vec<(String, String)>,
}

/// An option and its value; storage.conf has options in any case.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_lowercase(), value.to_owned())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

pub(crate) fn refuse_repeated(options: &[(String, String)], command: &str) -> Result<(), Failure> {
    for (place, (key, _)) in options.iter().enumerate() {
        if options[..place].iter().any(|(earlier, _)| earlier == key) {
            return Err(Failure::Usage {
                message: format!("`{key}` is set more than once"),
                hint: format!("sistemo {command} --help"),
            });
        }
    }
    Ok(())
}

impl Command {
    /// Runs the command.
    pub(crate) fn run(self, session: &Session) -> Result<(), Failure> {
        let output = session.output;
        match self {
            Command::List => output.list(&session.engine()?.pool_views()?, "no pools"),
            Command::Show { pool } => output.details(&session.engine()?.pool_view(&pool)?),
            Command::Add(Add {
                name,
                driver,
                options,
            }) => {
                refuse_repeated(&options, "pool add")?;
                let new = NewPool {
                    name,
                    driver,
                    options,
                };
                output.one(&session.engine()?.add_pool(&new)?)
            }
            Command::Set(Set { pool, changes }) => {
                refuse_repeated(&changes, "pool set")?;
                let changed = session.engine()?.set_pool(&pool, &changes)?;
                if let Some(told) = size_is_for_later(&changed, &changes) {
                    output.note(&told);
                }
                output.one(&changed)
            }
            Command::Remove { pool } => {
                let removed = session.engine()?.remove_pool(&pool)?;
                match &removed.path {
                    Some(path) => {
                        output.note(&format!("removed pool {pool}; {} stays", path.display()));
                    }
                    None => output.note(&format!("removed pool {pool}")),
                }
                output.deleted(&[removed])
            }
            Command::Resize { pool, size } => {
                output.one(&session.engine()?.resize_pool(&pool, size)?)
            }
            Command::Drivers => output.list(&session.engine()?.drivers(), "no drivers"),
        }
    }
}

/// What a new `size` of a pool with a filesystem of its own does not do.
fn size_is_for_later(pool: &PoolView, changes: &[(String, String)]) -> Option<String> {
    let sized = changes.iter().any(|(key, _)| key == "size");
    (sized && pool.resizable).then(|| {
        let name = &pool.name;
        format!(
            "the filesystem of pool {name} stays as large as it is; `sistemo pool resize {name} \
             SIZE` grows it"
        )
    })
}

fn status(pool: &PoolView) -> Cell {
    if pool.available {
        Cell::styled("available", PLAIN)
    } else {
        Cell::styled("unavailable", BAD)
    }
}

/// The title of a section that is no pool's name may hold anything.
fn shown_name(pool: &PoolView) -> String {
    pool.name.escape_debug().to_string()
}

impl Shown for PoolView {
    fn table(pools: &[PoolView]) -> Table {
        let mut columns = [
            "NAME",
            "DRIVER",
            "STATUS",
            "VOLUMES",
            "PROVISIONED",
            "SIZE",
            "USED",
            "FREE",
            "PATH",
        ]
        .map(Column::new)
        .to_vec();
        let with_reasons = pools.iter().any(|pool| !pool.available);
        if with_reasons {
            columns.push(Column::new("REASON"));
        }
        let mut table = Table::new(columns);
        for pool in pools {
            let space = |bytes: Option<u64>| Cell::maybe(bytes.map(Bytes::new));
            let mut cells = vec![
                Cell::new(shown_name(pool)),
                Cell::maybe(pool.driver.as_ref()),
                status(pool),
                Cell::new(pool.volumes),
                Cell::new(Bytes::new(pool.provisioned_bytes)),
                space(pool.size_bytes),
                space(pool.used_bytes),
                space(pool.free_bytes),
                Cell::maybe(pool.path.as_ref().map(|path| path.display())),
            ];
            if with_reasons {
                cells.push(Cell::maybe(pool.reason.as_ref()));
            }
            table.row(cells);
        }
        table
    }
}

/// What a power costs a user.
fn shown_cost(cost: Cost) -> &'static str {
    match cost {
        Cost::Instant => "instant",
        Cost::Copy => "copy",
    }
}

impl Described for PoolView {
    fn details(&self) -> Details {
        let mut details = Details::default();
        let space = |bytes: Option<u64>| bytes.map(Bytes::new);
        details.line("Name", shown_name(self));
        details.maybe("Driver", self.driver.as_ref());
        if self.available {
            details.line("Status", "available");
        } else {
            details.styled("Status", "unavailable", BAD);
        }
        details.if_any("Reason", self.reason.as_ref());
        details.line("Default", if self.default { "yes" } else { "no" });
        details.maybe("Path", self.path.as_ref().map(|path| path.display()));
        details.maybe("Size", space(self.size_bytes));
        details.maybe("Used", space(self.used_bytes));
        details.maybe("Free", space(self.free_bytes));
        details.line("Volumes", self.volumes);
        if self.trash > 0 {
            details.line("In the trash", self.trash);
        }
        details.line("Provisioned", Bytes::new(self.provisioned_bytes));
        if self.images > 0 {
            details.line("Images", self.images);
        }
        if self.available {
            // Nothing is known of a pool that was not used yet.
            details.maybe("Clones", self.clones.map(shown_cost));
            details.maybe("Snapshots", self.snapshots.map(shown_cost));
            details.line("Can be resized", if self.resizable { "yes" } else { "no" });
        }
        let options = self.options.iter();
        details.several(
            "Options",
            options.map(|(key, value)| format!("{key} = {value}")),
        );
        let described = self.file.as_ref().zip(self.line);
        details.maybe(
            "Described in",
            described.map(|(file, line)| format!("{}:{line}", file.display())),
        );
        details
    }
}

impl Shown for DriverInfo {
    fn table(drivers: &[DriverInfo]) -> Table {
        let columns = ["NAME", "ALIASES", "OPTIONS", "POWERS", "SUMMARY"];
        let mut table = Table::new(columns.map(Column::new).to_vec());
        for driver in drivers {
            let options = driver.options.iter().map(|option| {
                let default = option.default.as_ref();
                match (option.required, default) {
                    (true, _) => format!("{} (required)", option.name),
                    (false, Some(default)) => format!("{} ({default})", option.name),
                    (false, None) => option.name.clone(),
                }
            });
            let powers = driver.powers.iter().map(|power| power.as_str().to_owned());
            table.row(vec![
                Cell::new(&driver.name),
                joined(driver.aliases.iter().cloned()),
                joined(options),
                joined(powers),
                Cell::new(&driver.summary),
            ]);
        }
        table
    }
}

fn joined(words: impl Iterator<Item = String>) -> Cell {
    let words: Vec<_> = words.collect();
    Cell::maybe((!words.is_empty()).then(|| words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_a_key_and_a_value_that_may_hold_anything() {
        for (text, key, value) in [
            ("dir_path=/srv/a=b", "dir_path", "/srv/a=b"),
            ("Dir_Path=", "dir_path", ""),
        ] {
            assert_eq!(pair(text), Ok((key.to_owned(), value.to_owned())));
        }
        for text in ["", "dir_path", "=/srv"] {
            assert_eq!(pair(text), Err(format!("`{text}` is not KEY=VALUE")));
        }
    }

    fn view(name: &str) -> PoolView {
        PoolView {
            name: name.to_owned(),
            driver: None,
            path: None,
            available: false,
            reason: Some("no pool can have this name".to_owned()),
            default: false,
            size_bytes: None,
            used_bytes: None,
            free_bytes: None,
            provisioned_bytes: 0,
            volumes: 0,
            trash: 0,
            images: 0,
            clones: None,
            snapshots: None,
            resizable: false,
            options: std::collections::BTreeMap::new(),
            file: None,
            line: Some(1),
        }
    }

    #[test]
    fn a_title_from_the_file_cannot_steer_the_terminal() {
        let shown = PoolView::table(&[view("\u{1b}[2J")]).to_string();
        assert!(shown.contains("\\u{1b}[2J"), "{shown}");
    }

    #[test]
    fn a_size_that_makes_nothing_larger_is_not_passed_over() {
        let own = PoolView {
            resizable: true,
            ..view("fast")
        };
        let size = [("size".to_owned(), "5G".to_owned())];
        let told = size_is_for_later(&own, &size).unwrap();
        assert!(told.contains("`sistemo pool resize fast SIZE`"), "{told}");
        let other = [("trash_keep".to_owned(), "0".to_owned())];
        assert_eq!(size_is_for_later(&own, &other), None);
        assert_eq!(size_is_for_later(&view("fast"), &size), None);
    }
}
