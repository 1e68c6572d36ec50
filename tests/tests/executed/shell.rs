//! The words of a shell script that stand where a program would.

/// Keywords after which a command follows, and words that run the command behind them.
const BEFORE_A_COMMAND: [&str; 12] =
    ["if", "then", "else", "elif", "do", "while", "until", "!", "{", "time", "command", "exec"];
/// Programs that start the program named in their arguments.
pub(crate) const WRAPPERS: [&str; 12] = [
    "env",
    "nohup",
    "nsenter",
    "setpriv",
    "setsid",
    "strace",
    "taskset",
    "timeout",
    "unshare",
    "without_services",
    "chroot",
    "xargs",
];
/// What the shell itself does.
const BUILTINS: [&str; 36] = [
    ".", ":", "[", "[[", "alias", "break", "builtin", "cd", "continue", "declare", "done", "echo", "esac", "eval",
    "exit", "export", "false", "fi", "getopts", "kill", "local", "printf", "read", "return", "set", "shift", "source",
    "test", "trap", "true", "type", "ulimit", "umask", "unset", "wait", "}",
];

/// The programs that `script` executes by name, functions of its own left out.
pub(crate) fn commands(script: &str) -> Vec<String> {
    let mut reader = Reader { text: script.chars().collect(), at: 0, found: Vec::new(), functions: Vec::new() };
    reader.read(None);
    let Reader { mut found, functions, .. } = reader;
    found.retain(|word| !functions.contains(word));
    found
}

/// The recipes of a Makefile as one script, its own variables and functions replaced by a word that is no program.
pub(crate) fn of_makefile(text: &str) -> String {
    let mut script = String::new();
    for line in text.lines().filter_map(|line| line.strip_prefix('\t')) {
        let mut rest = line.trim_start_matches(['@', '-', '+']);
        // `$(NAME)`, `$(if …)` and `$(MAKE)` end at their own bracket.
        while let Some((before, after)) = rest.split_once("$(") {
            script.push_str(before);
            script.push_str("/made");
            let mut depth = 1;
            let end = after.char_indices().find(|(_, letter)| {
                depth += match letter {
                    '(' => 1,
                    ')' => -1,
                    _ => 0,
                };
                depth == 0
            });
            rest = end.map_or("", |(place, _)| &after[place + 1..]);
        }
        script.push_str(&rest.replace("$$", "$"));
        script.push('\n');
    }
    script
}

struct Reader {
    text: Vec<char>,
    at: usize,
    found: Vec<String>,
    functions: Vec<String>,
}

/// Where the next word stands.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Command,
    Argument,
    /// Behind a wrapper: its options and their values come first.
    Wrapped,
    /// A pattern of `case`, up to its bracket.
    Pattern,
    /// The list of `for tool in …`: each word is a program that the loop asks for.
    Tools,
}

impl Reader {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    /// Reads commands up to `end`, which is consumed.
    fn read(&mut self, end: Option<char>) {
        let (mut next, mut cases) = (Next::Command, 0);
        while let Some(letter) = self.peek() {
            match letter {
                _ if Some(letter) == end && next != Next::Pattern => {
                    self.at += 1;
                    return;
                }
                '\n' | ';' | '&' | '|' => {
                    let clause = letter == ';' && self.text.get(self.at + 1) == Some(&';');
                    self.at += if clause { 2 } else { 1 };
                    if next != Next::Pattern {
                        next = if clause && cases > 0 { Next::Pattern } else { Next::Command };
                    }
                }
                ')' if next == Next::Pattern => {
                    self.at += 1;
                    next = Next::Command;
                }
                '(' | ')' => {
                    self.at += 1;
                    next = Next::Command;
                }
                ' ' | '\t' => self.at += 1,
                '\\' if self.text.get(self.at + 1) == Some(&'\n') => self.at += 2,
                '#' => self.skip_line(),
                '<' | '>' => self.skip_redirection(),
                _ => {
                    let word = self.word();
                    next = self.take(word, next, &mut cases);
                }
            }
        }
    }

    /// Files a word under what it is and says what follows.
    fn take(&mut self, word: String, next: Next, cases: &mut usize) -> Next {
        match next {
            Next::Pattern if word == "esac" => {
                *cases -= 1;
                return Next::Argument;
            }
            Next::Tools => {
                if is_program(&word) && word != "in" {
                    self.found.push(word);
                }
                return Next::Tools;
            }
            Next::Pattern | Next::Argument => {
                // `case WORD in` opens the patterns.
                return if word == "in" && *cases > 0 && next == Next::Argument { Next::Pattern } else { next };
            }
            Next::Wrapped if !is_program(&word) => return Next::Wrapped,
            Next::Command | Next::Wrapped => {}
        }
        if self.peek() == Some('(') && self.text.get(self.at + 1) == Some(&')') {
            self.functions.push(word);
            return Next::Command;
        }
        match word.as_str() {
            "case" => {
                *cases += 1;
                Next::Argument
            }
            "for" => {
                while self.peek() == Some(' ') {
                    self.at += 1;
                }
                if self.word() == "tool" { Next::Tools } else { Next::Argument }
            }
            word if BEFORE_A_COMMAND.contains(&word) => Next::Wrapped,
            word if is_assignment(word) => Next::Command,
            word if BUILTINS.contains(&word) || !is_program(word) => Next::Argument,
            _ => {
                let wraps = WRAPPERS.contains(&word.as_str());
                self.found.push(word);
                if wraps { Next::Wrapped } else { Next::Argument }
            }
        }
    }

    /// One word; commands in `$(…)` inside it are read, quoted text stands for itself.
    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(letter) = self.peek() {
            match letter {
                ' ' | '\t' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => break,
                '\'' => {
                    let quoted = self.text[self.at + 1..].iter().take_while(|letter| **letter != '\'').count();
                    self.at += quoted + 2;
                    word.push('\'');
                }
                '"' => {
                    self.at += 1;
                    self.double_quoted();
                    word.push('"');
                }
                '$' => {
                    self.expansion();
                    word.push('$');
                }
                '\\' => {
                    self.at += 2;
                    word.push('\\');
                }
                _ => {
                    self.at += 1;
                    word.push(letter);
                    // An array's elements are no commands.
                    if letter == '=' && self.peek() == Some('(') {
                        self.skip_brackets();
                    }
                }
            }
        }
        word
    }

    fn double_quoted(&mut self) {
        while let Some(letter) = self.peek() {
            match letter {
                '"' => {
                    self.at += 1;
                    return;
                }
                '\\' => self.at += 2,
                '$' => self.expansion(),
                _ => self.at += 1,
            }
        }
    }

    /// `$NAME`, `${…}`, `$((…))` or `$(COMMANDS)`.
    fn expansion(&mut self) {
        self.at += 1;
        match (self.peek(), self.text.get(self.at + 1)) {
            (Some('('), Some('(')) => self.skip_brackets(),
            (Some('('), _) => {
                self.at += 1;
                self.read(Some(')'));
            }
            (Some('{'), _) => {
                let length = self.text[self.at..].iter().take_while(|letter| **letter != '}').count();
                self.at += length + 1;
            }
            _ => {}
        }
    }

    /// An array or arithmetic, from its bracket on; commands inside are read.
    fn skip_brackets(&mut self) {
        let mut depth = 0;
        while let Some(letter) = self.peek() {
            if letter == '$' {
                self.expansion();
                continue;
            }
            self.at += 1;
            depth += match letter {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            if depth == 0 {
                return;
            }
        }
    }

    fn skip_line(&mut self) {
        self.at += self.text[self.at..].iter().take_while(|letter| **letter != '\n').count();
    }

    /// `>file`, `2>&1`, `<<'END'`; the body of a here-document is read as commands. `>(…)` and `<(…)` hold commands.
    fn skip_redirection(&mut self) {
        while matches!(self.peek(), Some('<' | '>' | '&' | '-')) {
            self.at += 1;
        }
        if self.peek() != Some('(') {
            while matches!(self.peek(), Some(' ')) {
                self.at += 1;
            }
            let _ = self.word();
        }
    }
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        let name = name.trim_end_matches('+');
        !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

/// A name as programs have them: a path or a number, an option or an expansion is none.
pub(crate) fn is_program(word: &str) -> bool {
    (2..=20).contains(&word.len())
        && word.starts_with(|letter: char| letter.is_ascii_lowercase())
        && word.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.+".contains(letter))
}
