//! Sets and maps: how they are declared, and their elements.

use super::super::set::joined;
use super::super::{Data, Element, ElementKey, Field, Name, Ruleset, Set, SetKind, Type};
use super::{concatenation, flags, one_line, verdict};

/// A set that is a row of its own on one line, without its name.
pub(in crate::nft) fn set_line(value: &Set) -> String {
    one_line(&declaration(&Name::observed(String::new()), value))
}

/// An element without its key, on one line.
pub(in crate::nft) fn element_line(value: &Element) -> String {
    let mut words = Vec::new();
    words.extend(value.comment.as_ref().map(|comment| format!("comment \"{comment}\"")));
    match &value.data {
        Data::Nothing => {}
        Data::Value(parts) => words.push(format!(": {}", joined(parts))),
        Data::Verdict(data) => words.push(format!(": {}", verdict(data))),
    }
    words.join(" ")
}

pub(super) fn set(ruleset: &Ruleset, name: &Name, set: &Set) -> String {
    let text = declaration(name, set);
    let of_this = |(key, _): &(&ElementKey, &Element)| key.set == *name;
    let of_set = ruleset.elements.iter().filter(of_this);
    let elements: Vec<String> = of_set.map(|(key, value)| element(key, value, set.counts)).collect();
    if elements.is_empty() {
        return text + "\t}\n";
    }
    let lines: Vec<String> = elements.chunks(elements_per_line(&set.key)).map(|line| line.join(", ")).collect();
    text + &format!("\t\telements = {{ {} }}\n\t}}\n", lines.join(",\n\t\t\t     "))
}

/// A set's block up to its elements.
fn declaration(name: &Name, set: &Set) -> String {
    let word = if set.kind == SetKind::Set { "set" } else { "map" };
    let (key, data) = types(set);
    let mut text = format!("\t{word} {name} {{\n\t\t{key}");
    match &set.kind {
        SetKind::Set => {}
        SetKind::Map(_) => text += &format!(" : {data}"),
        SetKind::VerdictMap => text += " : verdict",
    }
    text.push('\n');
    if set.is_dynamic() {
        text += "\t\tsize 65535\n";
    }
    if set.flags.0 != 0 {
        let names = [(0x2, "constant"), (0x20, "dynamic"), (0x4, "interval"), (0x10, "timeout")];
        text += &format!("\t\tflags {}\n", flags(set.flags.0, names.into_iter()));
    }
    if set.counts {
        text += "\t\tcounter\n";
    }
    text
}

/// The types of the key, with the word before them, and those of the value. One that the language has no name for makes the
/// tool show where all of them come from.
fn types(set: &Set) -> (String, String) {
    let data: &[Type] = if let SetKind::Map(data) = &set.kind { data } else { &[] };
    if set.key.contains(&Type::Index) {
        (format!("typeof {}", concatenation(&sources(&set.key))), concatenation(&sources(data)))
    } else {
        (format!("type {}", joined(&set.key)), joined(data))
    }
}

/// A field of each of the types, where there is one that a key with an index is made of.
fn sources(types: &[Type]) -> Vec<Field> {
    types.iter().filter_map(|ty| ty.source()).collect()
}

fn elements_per_line(key: &[Type]) -> usize {
    match key {
        [Type::Ipv4Addr] => 2,
        [Type::InetService | Type::InetProto | Type::Mark] => 5,
        _ => 1,
    }
}

/// An element; what it has counted is not shown, as by `nft -s`.
fn element(key: &ElementKey, value: &Element, counts: bool) -> String {
    let counter = if counts { "counter" } else { "" };
    let words = [joined(&key.key), counter.to_owned(), element_line(value)];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}
