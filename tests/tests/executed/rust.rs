//! The words of Rust sources that stand where a program would.

use super::shell::{self, WRAPPERS, is_program};

/// A piece of source: a string literal's content, or one letter that is no blank.
enum Token {
    Text(String),
    Letter(char),
}

/// Calls whose first literal is a program, whatever stands between the bracket and it.
const CALLS: [&str; 9] = ["Command::new", "command", "run", "output", "text_of", "words_of", "try_each", "sh", "tool"];

/// The programs that `source` executes by name.
pub(crate) fn commands(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    for (place, token) in tokens.iter().enumerate() {
        let Token::Text(text) = token else { continue };
        let before = before(&tokens, place);
        let first = text.split_whitespace().next().unwrap_or_default();
        if CALLS.iter().any(|call| is_first_of(&before, call)) && is_program(first) {
            found.push(first.to_owned());
            if WRAPPERS.contains(&first) {
                found.extend(wrapped(&tokens, place));
            }
            if first == "tar" && texts(&tokens, place).next().is_some_and(|option| option.contains('J')) {
                found.push("xz".to_owned());
            }
        }
        let of_shell = matches!(last_text(&tokens, place), Some(option) if is_shell_option(option));
        if of_shell {
            found.extend(shell::commands(text));
        }
    }
    found
}

/// `-c`, `-ec`, `-euc`: the next argument is a script.
fn is_shell_option(text: &str) -> bool {
    text.len() <= 5
        && text.starts_with('-')
        && text.ends_with('c')
        && text[1..].chars().all(|letter| "euxoc".contains(letter))
}

/// The code before a literal, back to the end of the statement or the literal before.
fn before(tokens: &[Token], place: usize) -> String {
    let mut letters: Vec<char> = tokens[..place]
        .iter()
        .rev()
        .map_while(|token| match token {
            Token::Letter(letter) if !";{}".contains(*letter) => Some(*letter),
            _ => None,
        })
        .collect();
    letters.reverse();
    letters.into_iter().collect()
}

/// Whether the literal behind `before` is the first one in a call of `name`: at its bracket, behind `&[`, or behind other arguments.
fn is_first_of(before: &str, name: &str) -> bool {
    before.rsplit_once(&format!("{name}(")).is_some_and(|(ahead, arguments)| {
        let whole = !ahead.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
        // Arguments before it are plain: names and references, no call of another function but `OsStr::new`.
        let plain = arguments.replace("OsStr::new(", "");
        whole && !plain.contains(['(', ')', '|']) && plain.matches('[').count() < if name == "command" { 1 } else { 2 }
    })
}

fn last_text(tokens: &[Token], place: usize) -> Option<&str> {
    tokens[..place].iter().rev().take(6).find_map(|token| match token {
        Token::Text(text) => Some(text.as_str()),
        Token::Letter(_) => None,
    })
}

/// The program that a wrapper starts: the first literal in the rest of the statement that is a name.
fn wrapped(tokens: &[Token], place: usize) -> Option<String> {
    texts(tokens, place).find(|text| is_program(text)).map(str::to_owned)
}

/// The literals behind `place` in the rest of its statement.
fn texts(tokens: &[Token], place: usize) -> impl Iterator<Item = &str> {
    let statement = tokens.iter().skip(place + 1).take_while(|token| !matches!(token, Token::Letter(';')));
    statement.filter_map(|token| match token {
        Token::Text(text) => Some(text.as_str()),
        Token::Letter(_) => None,
    })
}

/// Splits a source into literals and letters; comments go.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while let Some(letter) = text.get(at).copied() {
        let follows =
            |wanted: &str| wanted.chars().enumerate().all(|(offset, letter)| text.get(at + offset) == Some(&letter));
        if follows("//") {
            at += text[at..].iter().take_while(|letter| **letter != '\n').count();
        } else if letter == '"' {
            let (literal, length) = literal(&text[at + 1..]);
            tokens.push(Token::Text(literal));
            at += length + 1;
        } else if let Some(hashes) = raw(&text[at..]) {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let content = &text[at + hashes + 2..];
            let length = content.windows(end.len()).take_while(|window| **window != end[..]).count();
            tokens.push(Token::Text(content[..length].iter().collect()));
            at += hashes + 2 + length + end.len();
        } else if follows("'\"'") || follows("'\\\"'") {
            at += if follows("'\"'") { 3 } else { 4 };
        } else {
            if !letter.is_whitespace() {
                tokens.push(Token::Letter(letter));
            }
            at += 1;
        }
    }
    tokens
}

/// The content of a literal that has been opened, and its length with the closing quote.
fn literal(text: &[char]) -> (String, usize) {
    let (mut content, mut at) = (String::new(), 0);
    while let Some(letter) = text.get(at).copied() {
        match letter {
            '"' => return (content, at + 1),
            '\\' => {
                match text.get(at + 1) {
                    Some('n') => content.push('\n'),
                    // A line that goes on: the blanks that follow are part of it.
                    Some('\n') => at += text[at + 2..].iter().take_while(|letter| letter.is_whitespace()).count(),
                    Some(escaped) => content.push(*escaped),
                    None => {}
                }
                at += 2;
            }
            _ => {
                content.push(letter);
                at += 1;
            }
        }
    }
    (content, at)
}

/// The number of hashes of a raw literal that begins here.
fn raw(text: &[char]) -> Option<usize> {
    let rest = text.strip_prefix(&['r'])?;
    let hashes = rest.iter().take_while(|letter| **letter == '#').count();
    (rest.get(hashes) == Some(&'"')).then_some(hashes)
}
