//! The commands of a document, as an operator copies them.
//!
//! Invariant: what is run is what the document says; only `NODE` and `POD` are given their names. A command that the document no longer has
//! is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A document of `docs/`.
pub(crate) struct Document {
    name: &'static str,
    text: String,
}

impl Document {
    pub(crate) fn read(name: &'static str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { name, text })
    }

    /// The commands below a heading, one text for each block of them.
    pub(crate) fn blocks(&self, heading: &str) -> Result<Vec<String>> {
        let mut lines = self.text.lines().skip_while(|line| line.strip_prefix("## ") != Some(heading));
        ensure!(lines.next().is_some(), "{} has no section {heading:?}", self.name);
        let section = lines.take_while(|line| !line.starts_with("## "));
        let (mut blocks, mut block) = (Vec::new(), None::<String>);
        for line in section {
            match (line.starts_with("```"), block.take()) {
                (true, None) => block = Some(String::new()),
                (true, Some(whole)) => blocks.push(whole),
                (false, Some(begun)) => block = Some(begun + line + "\n"),
                (false, None) => {}
            }
        }
        Ok(blocks)
    }

    /// The block of a section in which this stands.
    pub(crate) fn block(&self, heading: &str, part: &str) -> Result<String> {
        let mut with = self.blocks(heading)?.into_iter().filter(|block| block.contains(part));
        let found = with.next().with_context(|| format!("{}: no {part:?} below {heading:?}", self.name))?;
        ensure!(with.next().is_none(), "{}: {part:?} twice below {heading:?}", self.name);
        Ok(found)
    }
}
