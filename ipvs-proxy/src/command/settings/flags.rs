//! kube-proxy's flags on a command line.
//!
//! Invariant: a flag that the command has already is left as it is and read all the same; every flag can come from the
//! environment, as the program's others.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::field::{Field, Form, Served};
use super::fields::FIELDS;
use super::{Given, own_default};

/// Title above the flags in the help.
const HEADING: &str = "Flags of kube-proxy";

/// Adds the flags that `command` lacks, with variables that begin with `prefix`.
#[must_use]
pub(crate) fn add(command: Command, prefix: &str) -> Command {
    let new = FIELDS.iter().filter(|field| !field.flag.is_empty() && id(&command, field.flag).is_none());
    let args: Vec<_> = new.map(|field| arg(field, prefix)).collect();
    command.args(args)
}

fn arg(field: &Field, prefix: &str) -> Arg {
    let arg = Arg::new(field.flag)
        .long(field.flag)
        .env(format!("{prefix}_{}", field.flag.replace('-', "_").to_uppercase()))
        .help(help(field))
        .help_heading(HEADING);
    match field.form {
        Form::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL"),
        Form::NetworkList | Form::NodeAddresses => arg.action(ArgAction::Append).value_name("NETWORK,..."),
        Form::Networks => arg.value_name("NETWORK,..."),
        Form::Time | Form::TimeOrNanoseconds => arg.value_name("TIME"),
        Form::Number { .. } | Form::Rate | Form::Quantity => arg.value_name("NUMBER").allow_negative_numbers(true),
        Form::Address | Form::Endpoint => arg.value_name("ADDRESS"),
        Form::Gates => arg.action(ArgAction::Append).value_name("NAME=BOOL,..."),
        Form::Text | Form::OneOf(_) | Form::Modules => arg.value_name("TEXT"),
    }
}

/// What the flag means, where it stands in a file, and its default.
fn help(field: &Field) -> String {
    let mut text = match field.served {
        Served::Start(_) | Served::Live => field.help.to_owned(),
        Served::Missing(why) | Served::Needless(why) => format!("No effect: {why}"),
        Served::Only(words, why) => format!("{} only: {why}", words.join(" ").trim()),
    };
    if !field.path.is_empty() {
        text += &format!(" [file: {}]", field.path);
    }
    let default = own_default(field.key()).unwrap_or(field.default);
    if !default.is_empty() {
        text += &format!(" [default: {default}]");
    }
    text
}

/// The values that flags and variables give.
pub(crate) fn given(command: &Command, matches: &ArgMatches) -> Given {
    let value = |field: &Field| {
        let id = id(command, field.flag)?;
        let source = matches.value_source(id)?;
        let words: Vec<&str> = matches.get_many::<String>(id)?.map(String::as_str).collect();
        (source != ValueSource::DefaultValue).then(|| words.join(","))
    };
    let flagged = FIELDS.iter().filter(|field| !field.flag.is_empty());
    flagged.filter_map(|field| Some((field.key(), value(field)?))).collect()
}

/// The id of the argument with that long name.
fn id<'command>(command: &'command Command, long: &str) -> Option<&'command str> {
    command.get_arguments().find(|arg| arg.get_long() == Some(long)).map(|arg| arg.get_id().as_str())
}
