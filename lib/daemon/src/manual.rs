//! Manual pages and completions, made from the flags that the command line is read by.
//!
//! Invariant: nothing stands in them that the program does not read; the environment they are made in changes nothing; a page is whole or is
//! what it was.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::files;

/// Section of the manual: commands of administrators.
const SECTION: &str = "8";

/// What a shell is to complete.
#[derive(Debug, Clone, Copy, Args)]
pub struct Completions {
    /// The shell.
    pub shell: Shell,
}

/// Where manual pages go.
#[derive(Debug, Clone, Args)]
pub struct Pages {
    /// The folder, such as /usr/share/man/man8.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

impl Completions {
    /// The script for `command`.
    #[must_use]
    pub fn render(self, mut command: Command) -> Vec<u8> {
        let mut script = Vec::new();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, &name, &mut script);
        if self.shell == Shell::Bash && name.contains('-') {
            // The generator has two spellings of the function of a program with a hyphen: no verb of it completed anything.
            let (one, other) = (name.replace('-', "__subcmd__"), name.replace('-', "__"));
            script = String::from_utf8_lossy(&script).replace(&one, &other).into_bytes();
        }
        script
    }
}

impl Pages {
    /// Writes a page for `command` and one for each of its verbs.
    ///
    /// # Errors
    /// When the folder or a page cannot be written.
    pub fn write(&self, command: &Command) -> io::Result<()> {
        // Flags that may stand behind every verb are on this page only.
        self.page(command.get_name(), command)?;
        self.verbs(command.get_name(), command)
    }

    fn verbs(&self, above: &str, command: &Command) -> io::Result<()> {
        for verb in command.get_subcommands() {
            let name = format!("{above}-{}", verb.get_name());
            self.page(&name, verb)?;
            self.verbs(&name, verb)?;
        }
        Ok(())
    }

    fn page(&self, name: &str, command: &Command) -> io::Result<()> {
        let named = command.clone().name(name.to_owned());
        let mut page = Vec::new();
        clap_mangen::Man::new(named).section(SECTION).render(&mut page)?;
        let path = self.folder.join(format!("{name}.{SECTION}"));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        files::replace(&path, &page).map(drop).map_err(named)
    }
}
