//! The command line as a whole: the nouns, and the options that stand anywhere.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use sistemo::ImageFormat;
use sistemo::model::{Bytes, MachineId, Reference};

use crate::commands::{completion, driver, image, machine, manual, pool, volume};

const HELP_STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Virtual machines whose disks outlive them
///
/// A volume is a named disk that lives until it is deleted; a machine borrows it.
#[derive(Debug, Parser)]
#[command(
    name = "sistemo",
    version,
    styles = HELP_STYLES,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  sistemo volume create 5G --name pgdata
  sistemo machine deploy debian --name db1 --attach pgdata
  sistemo machine ssh db1
  sistemo doctor                       # would a deploy work on this host?"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The options that stand anywhere.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options that stand anywhere")]
pub(crate) struct Global {
    /// Where everything is kept
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
        help = "Keep everything in DIR [env: SISTEMO_DATA_DIR] [default: ~/.sistemo]"
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// How results and errors are written
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub(crate) output: Format,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Tell on stderr what is being done; twice or thrice tells more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How results and errors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences, for people
    Table,
    /// JSON, for programs
    Json,
}

/// A noun.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Named disks that outlive machines
    #[command(subcommand, arg_required_else_help = true)]
    Volume(volume::Command),
    /// Virtual machines
    #[command(subcommand, visible_alias = "vm", arg_required_else_help = true)]
    Machine(Box<machine::Command>),
    /// Operating systems to deploy
    #[command(subcommand, arg_required_else_help = true)]
    Image(image::Command),
    /// Places that hold volumes
    #[command(subcommand, arg_required_else_help = true)]
    Pool(pool::Command),
    /// What keeps volumes in pools
    #[command(subcommand, arg_required_else_help = true)]
    Driver(driver::Command),
    /// Show the settings in effect and where each comes from
    Config,
    /// Check whether this host can run machines, and say what to install
    #[command(after_help = "Exit status: 0 when a deploy would work, else 1.")]
    Doctor,
    /// Print the public key that machines let in
    ///
    /// The key is made on first use. Every machine deployed afterwards lets it in as root.
    SshKey,
    /// Print a completion script for a shell
    Completion(completion::Completion),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(manual::Manual),
    /// Watch over one machine; started by Sistemo itself
    #[command(hide = true)]
    Monitor {
        /// The machine's ID
        id: MachineId,
    },
}

/// Parses a size, so that its own error is what the user reads.
pub(crate) fn size(text: &str) -> Result<Bytes, String> {
    value(text)
}

/// Parses a value, so that its own error is what the user reads. An option's value may begin
/// with a dash, to be told what is wrong with it; another option is not a bad value, though,
/// but a value that is missing.
pub(crate) fn value<T>(text: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: Display,
{
    if text.starts_with("--") {
        return Err(format!("a value is needed before `{text}`"));
    }
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// Parses the name, ID or ID prefix of an object that is there.
pub(crate) fn reference(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        Err("a name or ID cannot be empty".to_owned())
    } else {
        Ok(Reference::from(text))
    }
}

/// Parses how a file holds a disk.
pub(crate) fn disk_formats() -> impl TypedValueParser<Value = ImageFormat> {
    PossibleValuesParser::new(ImageFormat::ALL.map(ImageFormat::as_str))
        .try_map(|word| word.parse::<ImageFormat>())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_stand_anywhere() {
        for line in [
            "sistemo -o json -q volume list",
            "sistemo volume -o json -q list",
            "sistemo volume list -o json -q",
        ] {
            let global = parse(line).unwrap().global;
            assert_eq!(global.output, Format::Json, "{line}");
            assert!(global.quiet, "{line}");
        }
    }

    #[test]
    fn aliases_are_understood() {
        for line in [
            "sistemo vm ls",
            "sistemo vm show db1",
            "sistemo vm rm db1 -y",
            "sistemo volume add 1G",
            "sistemo volume ls",
            "sistemo volume rm a b -y",
            "sistemo volume snapshot ls a",
            "sistemo volume snapshot rm a one -y",
            "sistemo pool ls",
            "sistemo pool rm fast",
            "sistemo image ls",
            "sistemo image rm debian -y",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn everything_after_the_machine_belongs_to_the_command() {
        for (line, expected) in [
            (
                "sistemo machine exec db1 ls -la -q",
                vec!["ls", "-la", "-q"],
            ),
            (
                "sistemo machine exec db1 -- ls -o json",
                vec!["ls", "-o", "json"],
            ),
            ("sistemo machine exec db1 -q", vec!["-q"]),
            ("sistemo machine exec db1 --help", vec!["--help"]),
            ("sistemo machine exec -q db1 -- -- x", vec!["--", "x"]),
            (
                "sistemo machine exec -- db1 ls --data-dir x",
                vec!["ls", "--data-dir", "x"],
            ),
        ] {
            let arguments = parse(line).unwrap();
            let Command::Machine(command) = arguments.command else {
                panic!("{line}");
            };
            let machine::Command::Exec(remote) = *command else {
                panic!("{line}");
            };
            let (machine, words) = remote.split().unwrap();
            assert_eq!(machine.as_str(), "db1", "{line}");
            assert_eq!(words, expected, "{line}");
            assert_eq!(arguments.global.output, Format::Table, "{line}");
        }
    }

    /// Every command that is not hidden, by its full name: `volume create`.
    fn commands() -> Vec<(String, clap::Command)> {
        fn collect(name: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
            for next in command.get_subcommands().filter(|next| !next.is_hide_set()) {
                let full = format!("{name} {}", next.get_name())
                    .trim_start()
                    .to_owned();
                found.push((full.clone(), next.clone()));
                collect(&full, next, found);
            }
        }
        let mut root = Arguments::command().term_width(100);
        root.build();
        let mut found = Vec::new();
        collect("", &root, &mut found);
        found
    }

    fn document(path: &str) -> String {
        let path = format!("{}/../../docs/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn help_texts() {
        let root = Arguments::command().term_width(100).render_long_help();
        let mut texts = vec![root.to_string()];
        for (name, mut command) in commands() {
            texts.push(format!("==== sistemo {name}\n{}", command.render_help()));
        }
        let text = texts.join("\n");
        let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
        let trimmed = trimmed.join("\n");
        insta::assert_snapshot!("help_texts", trimmed);
    }

    #[test]
    fn the_reference_has_every_command_and_option() {
        let reference = document("reference/cli.md");
        let inherited = ["help", "version", "data_dir", "output", "quiet", "verbose"];
        for id in inherited {
            let option = format!("--{}", id.replace('_', "-"));
            assert!(
                reference.contains(&option),
                "{option} is not in the reference"
            );
        }
        let sections: Vec<&str> = reference.split("\n### `sistemo ").skip(1).collect();
        let leaves = commands()
            .into_iter()
            .filter(|(_, command)| !command.has_subcommands());
        let mut described = 0;
        for (name, command) in leaves {
            let of_command = |section: &&&str| {
                section
                    .strip_prefix(&name)
                    .is_some_and(|rest| rest.starts_with([' ', '`']))
            };
            let section = sections
                .iter()
                .find(of_command)
                .unwrap_or_else(|| panic!("`sistemo {name}` is not in the reference"));
            for option in command.get_arguments() {
                if inherited.contains(&option.get_id().as_str()) {
                    continue;
                }
                let long = option.get_long().map(|long| format!("--{long}"));
                let short = option.get_short().map(|short| format!("`-{short}`"));
                let values = option
                    .is_positional()
                    .then(|| option.get_value_names())
                    .flatten();
                let values = values.into_iter().flatten().map(ToString::to_string);
                for word in long.into_iter().chain(short).chain(values) {
                    assert!(
                        section.contains(&word),
                        "`{word}` of `sistemo {name}` is not in it"
                    );
                }
            }
            for alias in command.get_visible_aliases() {
                assert!(
                    section.contains(&format!("Alias `{alias}`")),
                    "{alias} of {name}"
                );
            }
            described += 1;
        }
        assert_eq!(
            sections.len(),
            described,
            "the reference has a command that there is not"
        );
    }

    #[test]
    fn the_reference_has_every_error_code_and_setting() {
        let reference = document("reference/cli.md");
        for code in crate::failure::Code::value_variants() {
            let name = code.to_possible_value().unwrap().get_name().to_owned();
            assert!(
                reference.contains(&format!("\n| `{name}` |")),
                "{name} is not in it"
            );
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(
                json,
                format!("\"{name}\""),
                "what is documented is what is printed"
            );
        }
        for key in sistemo::Settings::KEYS {
            let variable = format!("`SISTEMO_{}`", key.to_ascii_uppercase());
            assert!(
                reference.contains(&format!("\n| `{key}` | {variable} |")),
                "{key} is not in it"
            );
        }
    }

    #[test]
    fn examples_in_the_guide_and_the_help_are_understood() {
        let mut texts = Vec::new();
        for page in [
            "getting-started",
            "volumes",
            "snapshots",
            "exchange",
            "machines",
            "images",
            "pools",
            "drivers",
        ] {
            let page = document(&format!("guide/{page}.md"));
            let blocks = page.split("```sh\n").skip(1);
            texts.extend(blocks.map(|block| block.split("```").next().unwrap().to_owned()));
        }
        let help = commands()
            .into_iter()
            .filter_map(|(_, command)| command.get_after_help().cloned());
        texts.extend(help.map(|help| help.to_string()));
        let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim);
        let of_ours = |line: &&str| line.starts_with("sistemo ") || line.contains(" | sistemo ");
        let mut understood = 0;
        for line in lines.filter(of_ours) {
            let words = shlex::split(line).unwrap();
            let commands = words.split(|word| word == "|");
            for command in commands.filter(|words| words[0] == "sistemo") {
                let end = command.iter().position(|word| word == ">");
                let command = &command[..end.unwrap_or(command.len())];
                if let Err(error) = Arguments::try_parse_from(command) {
                    panic!("{line}: {error}");
                }
                understood += 1;
            }
        }
        assert!(understood > 50, "only {understood} examples were found");
    }
}
