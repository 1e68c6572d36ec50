//! The folder of network configurations: which network a program finds in it.
//!
//! Invariant: files are taken in the order of their names. libcni searches for a name and gives up at the first file it cannot
//! read; containerd takes the first file there is; CRI-O passes over what it cannot read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::client::{Client, Release};
use super::network::{self, Network};

/// The network called `name` (`LoadNetworkConf`): lists before single configurations.
///
/// # Errors
/// When a file before it cannot be read, or there is none.
pub(crate) fn load(folder: &Path, release: Release, name: &str) -> Result<Network> {
    let lists = files(folder, &["conflist"])?;
    for file in &lists {
        let network = list(file, release)?;
        if network.name == name {
            return Ok(network);
        }
    }
    let singles = files(folder, &["conf", "json"])?;
    if lists.is_empty() && singles.is_empty() {
        bail!("no net configurations found in {}", folder.display());
    }
    for file in &singles {
        let plugin = single(file)?;
        if plugin.get("name").and_then(Value::as_str) == Some(name) {
            return Network::from_single(&plugin);
        }
    }
    bail!("no net configuration with name {name:?} in {}", folder.display())
}

/// The network a client uses when it is given no name.
///
/// # Errors
/// When there is none; containerd's also when its first file cannot be read.
pub(crate) fn first(folder: &Path, client: Client) -> Result<Network> {
    let mut found = files(folder, &["conf", "conflist", "json"])?.into_iter().map(|file| any(&file, client.release()));
    let network = match client {
        Client::CriO => found.find(Result::is_ok),
        _ => found.next(),
    };
    network.unwrap_or_else(|| bail!("no network config found in {}", folder.display()))
}

fn any(file: &Path, release: Release) -> Result<Network> {
    match file.extension() {
        Some(extension) if extension == "conflist" => list(file, release),
        _ => single(file).and_then(|plugin| Network::from_single(&plugin)),
    }
    .with_context(|| format!("load {}", file.display()))
}

/// A list and, for a libcni that knows them, the plugins in the folder named after it.
fn list(file: &Path, release: Release) -> Result<Network> {
    let text = fs::read_to_string(file).with_context(|| format!("error reading {}", file.display()))?;
    let mut network = Network::read(release, &text)?;
    if !network.load_only_inlined {
        let folder = file.parent().unwrap_or(Path::new("/")).join(&network.name);
        for file in files(&folder, &["conf"])? {
            network.plugins.push(single(&file)?);
        }
    }
    if network.plugins.is_empty() {
        bail!("no plugin configs found");
    }
    Ok(network)
}

fn single(file: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("error reading {}", file.display()))?;
    network::plugin(&serde_json::from_str(&text).context("error parsing configuration")?)
}

/// Files with one of these extensions, by name; a folder that does not exist holds none.
fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| !path.is_dir()).collect();
    files.retain(|path| {
        path.extension().and_then(|extension| extension.to_str()).is_some_and(|found| extensions.contains(&found))
    });
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"name": "good", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        folder
    }

    fn loaded(folder: &tempfile::TempDir, name: &str) -> String {
        match load(folder.path(), Release::V1_3, name) {
            Ok(network) => format!("{} of {}", network.plugins.len(), network.name),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn malformed_earlier_file_spoils_the_whole_load() {
        assert_eq!(loaded(&folder(&[("10-good.conflist", GOOD), ("20-bad.conflist", "{")]), "good"), "1 of good");
        let error = loaded(&folder(&[("10-bad.conflist", "{"), ("20-good.conflist", GOOD)]), "good");
        assert!(error.contains("error parsing configuration list"), "{error}");
    }

    #[test]
    fn single_configuration_is_found_after_the_lists_and_becomes_a_list() {
        let single = r#"{"name": "one", "cniVersion": "0.3.1", "type": "b"}"#;
        for file in ["90-one.conf", "90-one.json"] {
            let folder = folder(&[("10-good.conflist", GOOD), (file, single)]);
            assert_eq!(loaded(&folder, "one"), "1 of one");
            let network = load(folder.path(), Release::V1_3, "one").unwrap();
            assert_eq!((network.version(), network::plugin_type(&network.plugins[0])), ("0.3.1", "b"));
        }
        let both = folder(&[("10-one.conf", single), ("20-one.conflist", &GOOD.replace("good", "one"))]);
        assert_eq!(load(both.path(), Release::V1_3, "one").unwrap().version(), "1.0.0");
    }

    #[test]
    fn absence_is_reported_in_libcnis_words() {
        assert!(loaded(&folder(&[]), "x").contains("no net configurations found in"));
        assert!(
            loaded(&folder(&[("10-good.conflist", GOOD)]), "x").contains("no net configuration with name \"x\" in")
        );
        assert!(loaded(&folder(&[("10-good.conflist~", GOOD)]), "good").contains("no net configurations found in"));
    }

    #[test]
    fn plugins_in_the_folder_of_the_network_are_appended_unless_the_list_forbids_it() {
        let more = ("good/50-more.conf", r#"{"type": "more"}"#);
        assert_eq!(loaded(&folder(&[("10-good.conflist", GOOD), more]), "good"), "2 of good");
        let only = GOOD.replace("\"plugins\"", "\"loadOnlyInlinedPlugins\": true, \"plugins\"");
        assert_eq!(loaded(&folder(&[("10-good.conflist", &only), more]), "good"), "1 of good");
        let bare = r#"{"name": "good", "cniVersion": "1.0.0"}"#;
        assert_eq!(loaded(&folder(&[("10-good.conflist", bare), more]), "good"), "1 of good");
        assert_eq!(load(folder(&[("1.conflist", GOOD), more]).path(), Release::V1_1, "good").unwrap().plugins.len(), 1);
    }

    #[test]
    fn containerd_stops_at_a_broken_first_file_and_crio_passes_over_it() {
        let folder = folder(&[("05-broken.conflist", "{"), ("10-good.conflist", GOOD)]);
        for client in [Client::Containerd1, Client::Containerd2] {
            assert!(first(folder.path(), client).is_err());
        }
        assert_eq!(first(folder.path(), Client::CriO).unwrap().name(), "good");
    }
}
