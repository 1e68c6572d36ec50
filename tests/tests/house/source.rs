//! A Rust file, with and without its unit tests and comments.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::root;
use crate::sources::rust_files;

/// A file of the product: no file of unit tests.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the root of the tree.
    pub(crate) path: String,
    /// Everything.
    pub(crate) text: String,
    /// Numbers and content of the lines outside of `#[cfg(test)]`.
    pub(crate) lines: Vec<(usize, String)>,
}

impl Source {
    /// The lines outside of tests without comments.
    pub(crate) fn code(&self) -> String {
        let bare = self.lines.iter().map(|(_, line)| line.split("//").next().unwrap_or_default());
        bare.collect::<Vec<_>>().join("\n")
    }

    /// The path of the module below its crate: `["plan", "backend", "vxlan"]`.
    pub(crate) fn module(&self) -> Vec<String> {
        let inside = self.path.split_once("/src/").map_or("", |(_, inside)| inside);
        let names = inside.trim_end_matches(".rs").split('/').map(str::to_owned);
        names.filter(|name| !["mod", "lib", "main"].contains(&name.as_str())).collect()
    }
}

/// Path and text of every Rust file below a folder.
pub(crate) fn every_file(folder: &str) -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root()).unwrap_or(&path).display().to_string(), text)
    };
    rust_files(&root().join(folder)).into_iter().map(read).collect()
}

/// The Rust files of the product below a folder; files and folders that hold unit tests only are left out.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let files = every_file(folder);
    let tests: BTreeSet<PathBuf> = files.iter().flat_map(|(path, text)| test_modules(Path::new(path), text)).collect();
    let is_test = |path: &str| tests.iter().any(|test| Path::new(path).with_extension("").starts_with(test));
    let product = files.into_iter().filter(|(path, _)| !is_test(path));
    product.map(|(path, text)| Source { lines: without_tests(&text), path, text }).collect()
}

/// The files, without extension, of the modules that `#[cfg(test)] mod name;` declares.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let parent = path.parent().unwrap_or(path);
    let folder = if ["mod", "lib", "main"].contains(&stem.as_str()) { parent.to_owned() } else { parent.join(stem) };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declared = lines.iter().enumerate().filter(|(_, line)| is_for_tests(line)).filter_map(|(place, _)| {
        let item = lines[place..].iter().find(|line| !line.starts_with("#["))?;
        let name = item.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ").strip_prefix("mod ")?;
        name.strip_suffix(';').map(|name| folder.join(name))
    });
    declared.collect()
}

/// True for what leaves an item out of the programs: it is for tests, or for a fuzzing engine as well.
fn is_for_tests(line: &str) -> bool {
    line == "#[cfg(test)]" || line == "#[cfg(any(test, feature = \"fuzz\"))]"
}

/// The lines that no `#[cfg(test)]` takes away. An item ends where its indentation closes, which rustfmt guarantees.
fn without_tests(text: &str) -> Vec<(usize, String)> {
    let (mut kept, mut lines) = (Vec::new(), text.lines().enumerate().peekable());
    while let Some((number, line)) = lines.next() {
        if !is_for_tests(line.trim()) {
            kept.push((number + 1, line.to_owned()));
            continue;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indentation}}}");
        while lines.next_if(|(_, line)| line.trim().starts_with("#[")).is_some() {}
        if lines.next().is_some_and(|(_, item)| item.ends_with(';') || item.ends_with('}')) {
            continue;
        }
        while lines.next().is_some_and(|(_, line)| !line.starts_with(&end)) {}
    }
    kept
}
