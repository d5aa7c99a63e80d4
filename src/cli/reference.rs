//! What is derived from the command line's definition: completions, manual pages, `docs/flags.md`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::builder::PossibleValue;
use clap::{Arg, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Line;

/// What `docs/flags.md` says before the tables.
const FLAGS_HEAD: &str = "\
# Flags and the settings file

<!-- Written by the program: `UPDATE_DOCS=1 cargo test --test docs` -->

Flags that kube-apiserver has too carry its names, meanings, defaults and ranges. A flag that is given \
twice takes its last value; lists are comma separated, and more of them are added when the flag is \
given again. No setting is read from an environment variable.

## The file

`portico run --config FILE` reads the same settings from a YAML file: the flags' names without dashes \
in front are its keys, and lists are YAML lists. [`config/portico.yaml`](../config/portico.yaml) is an \
example.

- A flag on the command line wins over the file, and the file over the default. A list is taken from \
one of them as a whole.
- A value is read as the flag would read it; quotes make no difference.
- `apiVersion: portico.dev/v1alpha1` and `kind: PorticoConfiguration` may be left out, but have to be \
right when they are there.
- Relative paths are relative to the file's directory, as in the kubelet's file; those of flags are \
relative to the working directory.
- Unknown and repeated keys, several documents, aliases and tags are refused. So is a value that the \
flag would refuse, also where a flag wins over it.
- All faults are reported at once, each on a line with its place: \
`Error: portico.yaml:7:1: secure-prot: unknown setting, did you mean secure-port?`

At its start portico logs every setting that is not the default, with its value and where it is from: \
`flag`, or the file's line; with `-v 3` the defaults too. Settings hold paths and no secrets; what is \
in the files is never logged.
";

/// The script that completes commands and flags in a shell.
pub(super) fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Line::command(), "portico", &mut script);
    script
}

/// The manual page of portico, or of one of its commands.
pub(super) fn manual_page(command: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let line = named_in_full();
    let of = match command {
        None => &line,
        Some(name) => commands(&line)
            .into_iter()
            .find(|(full_name, _)| full_name == name)
            .map(|(_, command)| command)
            .with_context(|| format!("portico has no command \"{name}\""))?,
    };
    let mut page = Vec::new();
    manual(of).render(&mut page)?;
    Ok(page)
}

/// Writes the manual pages of all commands.
pub(super) fn write_manual(directory: &Path) -> anyhow::Result<()> {
    let line = named_in_full();
    let write = || {
        std::fs::create_dir_all(directory)?;
        std::iter::once(&line)
            .chain(commands(&line).into_iter().map(|(_, command)| command))
            .try_for_each(|command| manual(command).generate_to(directory).map(drop))
    };
    write().with_context(|| format!("cannot write manual pages into {}", directory.display()))
}

/// All commands, each after the one that it belongs to, with the names by which their pages are
/// known: `bench`, `bench-discovery`.
fn commands(line: &Command) -> Vec<(String, &Command)> {
    let mut all = Vec::new();
    for command in line.get_subcommands() {
        let name = command.get_name();
        all.push((name.to_owned(), command));
        let deeper = commands(command).into_iter();
        all.extend(deeper.map(|(below, command)| (format!("{name}-{below}"), command)));
    }
    all
}

/// The command line, whose commands know that they are portico's.
fn named_in_full() -> Command {
    let mut line = Line::command().disable_help_subcommand(true);
    line.build();
    line
}

fn manual(command: &Command) -> Man {
    Man::new(command.clone()).source(concat!("portico ", env!("CARGO_PKG_VERSION")))
}

/// `docs/flags.md`.
pub fn flags_page() -> String {
    let mut page = FLAGS_HEAD.to_owned();
    for (name, command) in commands(&Line::command()) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let name = name.replace('-', " ");
        // Here and below, writing to a string cannot fail.
        write!(page, "\n## portico {name}\n\n{about}.\n").ok();
        tables(command, &mut page);
    }
    page
}

/// A table for each group of flags, in the order of `--help`.
fn tables(command: &Command, page: &mut String) {
    let mut headings: Vec<&str> = Vec::new();
    for argument in command.get_arguments() {
        let heading = heading(argument);
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading_shown in headings {
        if heading_shown != DEFAULT_HEADING {
            write!(page, "\n### {heading_shown}\n").ok();
        }
        page.push_str("\n| flag | default | meaning |\n|---|---|---|\n");
        for argument in command.get_arguments().filter(|arg| heading(arg) == heading_shown) {
            page.push_str(&row(argument));
        }
    }
}

/// Of flags that stand in no group.
const DEFAULT_HEADING: &str = "Options";

fn heading(argument: &Arg) -> &str {
    argument.get_help_heading().unwrap_or(DEFAULT_HEADING)
}

fn row(argument: &Arg) -> String {
    let mut names: Vec<String> = Vec::new();
    if let Some(short) = argument.get_short() {
        names.push(format!("-{short}"));
    }
    let long = argument.get_long_and_visible_aliases().unwrap_or_default();
    names.extend(long.iter().map(|long| format!("--{long}")));
    let mut flag = names.join(", ");
    if let Some(value) = argument.get_value_names().and_then(<[_]>::first)
        && argument.get_action().takes_values()
    {
        // A flag whose value may be left out takes it after an equals sign only.
        let value = if argument.is_require_equals_set() {
            format!("[={value}]")
        } else if names.is_empty() {
            value.to_string()
        } else {
            format!(" {value}")
        };
        flag.push_str(&value);
    }
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default =
        if defaults.is_empty() { String::new() } else { format!("`{}`", defaults.join(",")) };
    let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible = argument.get_possible_values();
    // `true` and `false` of switches go without saying.
    if !possible.is_empty() && argument.get_action().takes_values() {
        let names: Vec<_> = possible.iter().map(PossibleValue::get_name).collect();
        write!(help, " ({})", names.join(", ")).ok();
    }
    // In a table's cell a bar is the end of the cell, also within backticks.
    let help = help.replace('*', "\\*").replace('<', "\\<");
    format!("| `{}` | {} | {} |\n", bars(&flag), bars(&default), bars(&help))
}

fn bars(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        Line::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_says_what_it_does_and_flags_of_run_stand_in_a_group() {
        for (_, command) in commands(&Line::command()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{argument}");
                let grouped = argument.get_help_heading().is_some();
                assert!(grouped || command.get_name() != "run", "{argument}");
            }
        }
    }

    #[test]
    fn a_row_shows_names_value_default_and_meaning() {
        let argument = Arg::new("x")
            .short('x')
            .long("long")
            .value_name("A|B")
            .default_values(["1", "2"])
            .help("Does * something");
        assert_eq!(row(&argument), "| `-x, --long A\\|B` | `1,2` | Does \\* something |\n");
        let argument = Arg::new("x").value_name("NAME").help("A name");
        assert_eq!(row(&argument), "| `NAME` |  | A name |\n");
    }

    #[test]
    fn pages_exist_for_commands_that_exist() {
        let page = String::from_utf8(manual_page(Some("run")).unwrap()).unwrap();
        assert!(page.contains("portico\\-run") && page.contains("\\-\\-secure\\-port"), "{page}");
        assert!(manual_page(None).is_ok());
        let page = String::from_utf8(manual_page(Some("bench-discovery")).unwrap()).unwrap();
        assert!(page.contains("portico\\-bench\\-discovery"), "{page}");
        let refused = manual_page(Some("fly")).unwrap_err().to_string();
        assert_eq!(refused, "portico has no command \"fly\"");
    }
}
