//! `Node`: YAML 1.2 (<https://yaml.org/spec/1.2.2/>), and JSON as a part of it, with positions.
//!
//! Invariant: nothing is guessed and nothing is lost: a scalar is the text that was written (1.20 stays 1.20), a key that
//! stands twice is there twice.

use cluster::Problem;
use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::Finding;

/// Levels of lists and maps in each other, more than any topology has.
const DEPTH: usize = 16;

/// The longest file that is read, in bytes: thousands of hosts.
const SIZE: usize = 4 << 20;

/// Where something begins; both are counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The line.
    pub(crate) line: usize,
    /// The character in it.
    pub(crate) column: usize,
}

/// A value with its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Where it begins.
    pub(crate) at: Position,
    /// What it is.
    pub(crate) content: Content,
    /// True for a scalar that is a text whatever it says: it stood in quotes or in a block.
    pub(crate) quoted: bool,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing: an empty value, `~` or `null`.
    Null,
    /// A text, a number, a truth value: as it was written, without quotes.
    Scalar(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in the order of the file.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key begins.
    pub(crate) at: Position,
    /// The value.
    pub(crate) value: Node,
}

impl Content {
    /// What it is, for a message.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Scalar(text) => format!("{text:?}"),
            Self::List(nodes) => format!("a list of {}", nodes.len()),
            Self::Map(entries) => format!("a map of {}", entries.len()),
        }
    }
}

/// Reads the one document of `text`.
///
/// # Errors
/// The first thing that makes it no YAML document: what stands behind cannot be read.
pub(crate) fn parse(text: &str) -> Result<Node, Finding> {
    if text.len() > SIZE {
        let found = format!("{} bytes", text.len());
        return Err(wrong(Position { line: 1, column: 1 }, &found, &format!("a file of at most {SIZE} bytes")));
    }
    let options = granit_parser::options! { emit_comments: false, disallow_directives: true };
    let mut reader = Reader { parser: Parser::new_from_str_with_options(text, options) };
    let mut document = None;
    loop {
        let (event, at) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            _ if document.is_some() => return Err(wrong(at, "a second document", "one topology in a file")),
            event => document = Some(reader.node(event, at, DEPTH)?),
        }
    }
    let nothing =
        || wrong(Position { line: 1, column: 1 }, "nothing", "a topology: cluster, networks, versions, hosts");
    document.ok_or_else(nothing)
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Position), Finding> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, begin(&span))),
            Some(Err(error)) => Err(unreadable(&error)),
            None => Ok((Event::StreamEnd, Position { line: 1, column: 1 })),
        }
    }

    fn node(&mut self, event: Event<'a>, at: Position, depth: usize) -> Result<Node, Finding> {
        let deeper = |at| depth.checked_sub(1).ok_or_else(|| wrong(at, "too many levels", "at most 16"));
        let quoted = matches!(&event, Event::Scalar(_, style, ..) if *style != ScalarStyle::Plain);
        let content = match event {
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) => self.list(deeper(at)?)?,
            Event::MappingStart(..) => self.map(deeper(at)?)?,
            _ => return Err(wrong(at, "an alias", "the value itself, written out")),
        };
        Ok(Node { at, content, quoted })
    }

    fn list(&mut self, depth: usize) -> Result<Content, Finding> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::List(nodes)),
                (event, at) => nodes.push(self.node(event, at, depth)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Content, Finding> {
        let mut entries = Vec::new();
        loop {
            let (event, at) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Content::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(wrong(at, "a key that is no text", "a name before the colon")),
            };
            let (event, begins) = self.next()?;
            entries.push(Entry { key, at, value: self.node(event, begins, depth)? });
        }
    }
}

/// A plain scalar may stand for nothing (YAML 1.2, 10.2.1.1); a quoted one never does.
fn scalar(text: &str, style: ScalarStyle) -> Content {
    match (style, text) {
        (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Content::Null,
        _ => Content::Scalar(text.to_owned()),
    }
}

fn begin(span: &Span) -> Position {
    Position { line: span.start.line(), column: span.start.col().saturating_add(1) }
}

fn unreadable(error: &ScanError) -> Finding {
    let at = Position { line: error.marker().line(), column: error.marker().col().saturating_add(1) };
    wrong(at, &error.info(), "YAML or JSON")
}

fn wrong(at: Position, found: &str, accepted: &str) -> Finding {
    Finding::error(at, Problem::new("the file", found, accepted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Position {
        Position { line, column }
    }

    fn text(at: Position, text: &str) -> Node {
        Node { at, content: Content::Scalar(text.to_owned()), quoted: false }
    }

    #[test]
    fn values_are_the_text_that_was_written_and_know_where_they_begin() {
        let node = parse("# a comment\nversion: 1.20\nlist: [a, 'null', ~]\nempty:\n").unwrap();
        let Content::Map(entries) = node.content else { panic!("a map") };
        assert_eq!(entries[0], Entry { key: "version".to_owned(), at: at(2, 1), value: text(at(2, 10), "1.20") });
        let Content::List(list) = &entries[1].value.content else { panic!("a list") };
        assert_eq!(list[..2], [text(at(3, 8), "a"), Node { quoted: true, ..text(at(3, 11), "null") }]);
        assert_eq!(list[2], Node { at: at(3, 19), content: Content::Null, quoted: false });
        assert_eq!(entries[2].value.content, Content::Null);
    }

    #[test]
    fn json_is_read_as_well() {
        let node = parse("{\"hosts\": {\"a\": {\"roles\": [\"node\"]}}}\n").unwrap();
        let Content::Map(entries) = node.content else { panic!("a map") };
        assert_eq!((entries[0].key.as_str(), entries[0].at), ("hosts", at(1, 2)));
    }

    #[test]
    fn a_key_that_stands_twice_is_there_twice() {
        let Content::Map(entries) = parse("a: 1\nb: 2\na: 3\n").unwrap().content else { panic!("a map") };
        assert_eq!(entries.iter().map(|entry| entry.at.line).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn what_is_no_topology_is_refused_with_its_place() {
        let deep = format!("{}{}", "[".repeat(17), "]".repeat(17));
        let cases = [
            ("a: [1", 1, ""),
            ("a: 1\n b: 2\n", 2, ""),
            ("a: &x 1\nb: *x\n", 2, "alias"),
            ("a: 1\n---\nb: 2\n", 3, "second document"),
            ("", 1, "nothing"),
            ("? [a]\n: b\n", 1, "no text"),
            (deep.as_str(), 1, "too many levels"),
            ("%YAML 1.2\n---\na: 1\n", 1, ""),
        ];
        for (text, line, word) in cases {
            let finding = parse(text).unwrap_err();
            assert_eq!(finding.at.line, line, "{text:?}: {finding}");
            assert!(finding.to_string().contains(word), "{text:?}: {finding}");
        }
        assert!(parse(&" ".repeat(SIZE + 1)).unwrap_err().to_string().contains("at most"));
    }
}
