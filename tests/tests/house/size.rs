//! How long files and functions may be, and what a public function that can fail must say.

use super::{Source, every_file, sources};

/// Lines of a file without its tests.
pub(crate) const FILE: usize = 400;
/// Lines of a function, from its name to its closing bracket.
pub(crate) const FUNCTION: usize = 60;
/// Parameters of a function beside `self`.
pub(crate) const PARAMETERS: usize = 5;

/// Percent of `lib/kernel` that are tests.
pub(crate) const KERNEL_TESTS: usize = 40;

/// A file that is too long.
pub(crate) fn long_file(source: &Source) -> Option<String> {
    let lines = source.lines.len();
    (lines > FILE).then(|| format!("{}: {lines} lines", source.path))
}

/// The functions that are too long or take too much.
pub(crate) fn large_functions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (start, (number, line)) in source.lines.iter().enumerate() {
        let Some(name) = function(line) else { continue };
        let length = length(&source.lines[start..]);
        if length > FUNCTION {
            found.push(format!("{}:{number} {name}: {length} lines", source.path));
        }
        let parameters = parameters(&head(&source.lines[start..]));
        if parameters > PARAMETERS {
            found.push(format!("{}:{number} {name}: {parameters} parameters", source.path));
        }
    }
    found
}

/// Lines of the function that begins with the first of `lines`. rustfmt closes it at its own indentation.
fn length(lines: &[(usize, String)]) -> usize {
    let first = &lines[0].1;
    if first.ends_with('}') || first.ends_with(';') {
        return 1;
    }
    let indentation = &first[..first.len() - first.trim_start().len()];
    let ends = |line: &str| {
        line.strip_prefix(indentation).is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
    };
    1 + lines[1..].iter().take_while(|(_, line)| !ends(line)).count() + 1
}

/// A function's text up to its body.
pub(super) fn head(lines: &[(usize, String)]) -> String {
    let mut head = String::new();
    for (_, line) in lines {
        head.push_str(line);
        if line.ends_with('{') || line.ends_with(';') || line.ends_with('}') {
            break;
        }
    }
    head
}

/// The number of parameters beside `self`.
fn parameters(head: &str) -> usize {
    let (mut depth, mut count, mut current) = (0_i32, 0, String::new());
    let mut generics = 0_i32;
    let mut before = ' ';
    for letter in head.split_once("fn ").map_or("", |(_, rest)| rest).chars() {
        match letter {
            '<' if depth == 0 => generics += 1,
            '>' if depth == 0 && before != '-' => generics -= 1,
            '(' | '[' | '{' | '<' if depth > 0 => depth += 1,
            '(' if generics == 0 => {
                depth = 1;
                before = letter;
                continue;
            }
            ')' | ']' | '}' if depth > 0 => depth -= 1,
            '>' if depth > 0 && before != '-' => depth -= 1,
            _ => {}
        }
        before = letter;
        if depth == 0 && letter == ')' && generics == 0 || depth == 1 && letter == ',' {
            let name = current.trim().trim_start_matches('&').trim_start_matches("mut ").to_owned();
            count += usize::from(!name.is_empty() && name != "self" && !name.ends_with(" self"));
            current.clear();
            if depth == 0 {
                return count;
            }
        } else if depth > 0 {
            current.push(letter);
        }
    }
    count
}

/// Share of a crate's lines that are tests, in percent: its unit tests and its `tests` folder.
pub(crate) fn test_share(package: &str) -> usize {
    let all: usize = every_file(package).iter().map(|(_, text)| text.lines().count()).sum();
    let product: usize = sources(&format!("{package}/src")).iter().map(|source| source.lines.len()).sum();
    all.saturating_sub(product) * 100 / all.max(1)
}

/// Public functions that return a `Result` and do not say when they fail.
pub(crate) fn silent_failures(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (start, (number, line)) in source.lines.iter().enumerate() {
        let Some(name) = function(line).filter(|_| line.trim_start().starts_with("pub ")) else { continue };
        let head = head(&source.lines[start..]);
        let returned =
            head.rsplit_once("->").map_or("", |(_, returned)| returned.split(" where").next().unwrap_or_default());
        let fails = returned.trim().starts_with("Result<") || returned.contains("::Result<");
        let documented = source.lines[..start]
            .iter()
            .rev()
            .map(|(_, line)| line.trim())
            .take_while(|line| line.starts_with("///") || line.starts_with("#["))
            .any(|line| line == "/// # Errors");
        if fails && !documented {
            found.push(format!("{}:{number} {name}", source.path));
        }
    }
    found
}

/// The name of the function that a line declares.
pub(super) fn function(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let qualifies =
        |word: &str| ["const", "async", "unsafe", "extern", "\"C\""].contains(&word) || word.starts_with("pub");
    let whole = before.is_empty() || before.ends_with(' ');
    let all = before.split_whitespace().all(|word| qualifies(word) || ["super)", "crate)", "self)"].contains(&word));
    (whole && all).then(|| after.split(['(', '<']).next().unwrap_or_default())
}

/// The readers, shown on the forms that occur.
pub(crate) fn check_readers() {
    let lines: Vec<(usize, String)> =
        "fn a(\n    x: u8,\n) -> u8 {\n    {\n    }\n}\nfn b();".lines().map(|line| (0, line.to_owned())).collect();
    assert_eq!((length(&lines), length(&lines[6..])), (6, 1));
    for (head, wanted) in [
        ("pub fn a<F: Fn(u8, u8) -> u8>(&self, b: Vec<(u8, u8)>, c: F) -> (u8, u8) {", 2),
        ("fn a(&mut self) {", 0),
        ("fn a(    b: u8,    c: impl Fn(&str) -> Result<u8, u8>,) {", 2),
        ("fn a(self: Box<Self>, (b, c): (u8, u8)) {", 2),
    ] {
        assert_eq!(parameters(head), wanted, "{head}");
    }
    assert_eq!(function("    pub(crate) async fn reach<T>("), Some("reach"));
    assert_eq!(function("    // the fn reach"), None);
}
