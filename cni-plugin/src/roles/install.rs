//! `netd-cni install [--as NAME,NAME] [--conflist FILE TO] DIR`: puts the binary where runtimes look for plugins, and the list that
//! names it where they look for networks.
//!
//! Invariant: at no time does a name in `DIR`, or `TO`, stand for half a file, and a running plugin is never written to: the
//! copy is made beside its place, synced, and renamed (libcni retries "text file busy" for seconds each). Every name is a file of
//! its own: who puts another plugin there with the `cp` of the coreutils writes into the file that is there, and must change no other
//! name. A list comes behind the plugins, because a runtime uses it as soon as it is there; one that is there already is left alone, so
//! that no runtime reads it anew.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::iter;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::roles::name::PluginName;
use crate::state::safe_file::LIST_MAX;

/// What `install` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The directory, `/opt/cni/bin` on most nodes.
    pub dir: PathBuf,
    /// Names besides `netd-cni`.
    pub names: Vec<&'static str>,
    /// The list of plugins, and the file that runtimes read it from.
    pub conflist: Option<(PathBuf, PathBuf)>,
}

/// How the command is written.
pub const USAGE: &str = "usage: netd-cni install [--as NAME[,NAME...]] [--conflist FILE TO] DIR";

/// Why nothing, or not everything, was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The command line is not understood.
    #[error("{0}\n{USAGE}")]
    Usage(String),
    /// The folder of the plugins is not there: a name mistyped, or a host without a runtime.
    #[error("there is no folder {0}: name the one that the runtime has its plugins in, or make it: mkdir -p {0}")]
    NoFolder(String),
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// What is to be installed as a list of plugins is none.
    #[error("{path} is no list of plugins: {why}; configs/cni/10-netd.conflist is one")]
    Conflist {
        /// The file.
        path: String,
        /// What it lacks.
        why: String,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.display().to_string();
    move |source| InstallError::Io { operation, path, source }
}

impl Install {
    /// Reads the words behind `install`.
    ///
    /// # Errors
    /// For an unknown name or option, and without a directory.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, InstallError> {
        let usage = |text: String| InstallError::Usage(text);
        let (mut dir, mut names, mut conflist) = (None, Vec::new(), None);
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option @ "--as", value)) => (option, Some(value.to_owned())),
                _ => (word.as_str(), None),
            };
            match option {
                "--as" => {
                    let list = value.or_else(|| words.next()).ok_or_else(|| usage("--as needs names".to_owned()))?;
                    for name in list.split(',') {
                        names.push(known(name).ok_or_else(|| {
                            usage(format!("{name:?} is no plugin of this binary: {}", known_names()))
                        })?);
                    }
                }
                "--conflist" => match (words.next(), words.next()) {
                    (Some(from), Some(to)) => conflist = Some((PathBuf::from(from), PathBuf::from(to))),
                    _ => {
                        return Err(usage("--conflist needs the file and the path that it is installed as".to_owned()));
                    }
                },
                option if option.starts_with('-') => return Err(usage(format!("unknown option {option}"))),
                _ if dir.is_some() => return Err(usage(format!("one directory only, not {word} as well"))),
                _ => dir = Some(PathBuf::from(word)),
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(Self { dir: dir.ok_or_else(|| usage("which directory?".to_owned()))?, names, conflist })
    }

    /// Installs the file at `source`; answers the paths that now stand for it, and that of a list that was written.
    ///
    /// # Errors
    /// When the file system refuses; names that were done before stay. When the list is none, before anything is done.
    pub fn run(&self, source: &Path) -> Result<Vec<PathBuf>, InstallError> {
        let list = self.conflist.as_ref().map(|(from, to)| Ok((conflist(from)?, to))).transpose()?;
        if !self.dir.is_dir() {
            return Err(InstallError::NoFolder(self.dir.display().to_string()));
        }
        let draft = draft_in(&self.dir);
        let mut installed = Vec::new();
        let others = self.names.iter().copied().filter(|name| *name != "netd-cni");
        for name in iter::once("netd-cni").chain(others) {
            let path = self.dir.join(name);
            place(&draft, &path, 0o755, |to| {
                let mut from = File::open(source).map_err(failed("open", source))?;
                io::copy(&mut from, to).map(drop).map_err(failed("write", &draft))
            })?;
            installed.push(path);
        }
        sync(&self.dir)?;
        if let Some((text, to)) = list
            && write_list(&text, to)?
        {
            installed.push(to.clone());
        }
        Ok(installed)
    }
}

/// The text of a list of plugins, after a look at whether a runtime would take it for one.
fn conflist(path: &Path) -> Result<Vec<u8>, InstallError> {
    let refuse = |why: String| InstallError::Conflist { path: path.display().to_string(), why };
    let text = bounded::read(path, LIST_MAX).map_err(failed("read", path))?;
    let list: serde_json::Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    if !list.get("name").is_some_and(is_text) {
        return Err(refuse("it has no `name`".to_owned()));
    }
    plugins_of(&list).map_err(|why| refuse(why.to_owned()))?;
    Ok(text)
}

fn is_text(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

/// The plugins of a list.
///
/// # Errors
/// What keeps it from being one.
pub(super) fn plugins_of(list: &serde_json::Value) -> Result<&[serde_json::Value], &'static str> {
    let plugins = list.get("plugins").and_then(serde_json::Value::as_array);
    let plugins = plugins.filter(|plugins| !plugins.is_empty()).ok_or("it has no `plugins`")?;
    let has_type = |plugin: &serde_json::Value| plugin.get("type").is_some_and(is_text);
    if plugins.iter().all(has_type) { Ok(plugins) } else { Err("one of its `plugins` has no `type`") }
}

/// Writes the list; false when it is there already.
fn write_list(text: &[u8], to: &Path) -> Result<bool, InstallError> {
    if bounded::read(to, LIST_MAX).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let draft = draft_in(dir);
    place(&draft, to, 0o644, |file| file.write_all(text).map_err(failed("write", &draft)))?;
    sync(dir)?;
    Ok(true)
}

/// Beside the final names, with a name that no runtime takes for a plugin or a list.
fn draft_in(dir: &Path) -> PathBuf {
    dir.join(format!(".netd-cni-{}", std::process::id()))
}

/// Has `path` stand for a new file that `write` fills, made as `draft`; of a failure nothing is left.
fn place(
    draft: &Path,
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> Result<(), InstallError>,
) -> Result<(), InstallError> {
    // Process numbers come again, in a container each time: what an interrupted call left may be a further name of the plugin that runs.
    remove(draft)?;
    let made = || {
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(mode);
        let mut file = options.open(draft).map_err(failed("create", draft))?;
        write(&mut file)?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed("set the mode of", draft))?;
        file.sync_all().map_err(failed("sync", draft))?;
        replace(draft, path)
    };
    let made = made();
    if made.is_err() {
        // The draft is ours alone; that it is gone already is fine.
        let _ = fs::remove_file(draft);
    }
    made
}

fn remove(draft: &Path) -> Result<(), InstallError> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", draft)(error)),
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> Result<(), InstallError> {
    let open = File::open(dir).map_err(failed("open", dir))?;
    open.sync_all().map_err(failed("sync", dir))
}

fn replace(draft: &Path, path: &Path) -> Result<(), InstallError> {
    fs::rename(draft, path).map_err(failed("replace", path))
}

fn known(name: &str) -> Option<&'static str> {
    PluginName::ALL.into_iter().find(|(_, known)| *known == name).map(|(_, known)| known)
}

fn known_names() -> String {
    PluginName::ALL.map(|(_, name)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn parse(text: &str) -> Result<Install, InstallError> {
        Install::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_line_is_read_or_refused() {
        let install = parse("--as flannel,portmap,flannel /opt/cni/bin").unwrap();
        assert_eq!(
            install,
            Install { dir: PathBuf::from("/opt/cni/bin"), names: vec!["flannel", "portmap"], conflist: None }
        );
        assert_eq!(parse("/x --as flannel").unwrap().names, ["flannel"]);
        assert_eq!(parse("--as=flannel,portmap /x").unwrap().names, ["flannel", "portmap"]);
        assert_eq!(parse("--as bridge /x").unwrap().names, ["bridge"]);
        let list = parse("--conflist /a/b /etc/cni/net.d/10-netd.conflist /x").unwrap().conflist.unwrap();
        assert_eq!(list, (PathBuf::from("/a/b"), PathBuf::from("/etc/cni/net.d/10-netd.conflist")));
        for bad in ["", "--as", "--as macvlan /x", "/x /y", "--force /x", "--as flannel", "/x --conflist a"] {
            assert!(parse(bad).unwrap_err().to_string().contains(USAGE), "{bad}");
        }
    }

    #[test]
    fn names_stand_for_the_same_program_and_replace_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let install = Install { dir: dir.path().join("bin"), names: vec!["flannel", "portmap"], conflist: None };
        fs::create_dir(&install.dir).unwrap();
        fs::write(install.dir.join("flannel"), "the former one").unwrap();
        for content in ["one", "two", "two"] {
            fs::write(&source, content).unwrap();
            assert_eq!(install.run(&source).unwrap().len(), 3);
            for name in ["netd-cni", "flannel", "portmap"] {
                let path = install.dir.join(name);
                assert_eq!(fs::read_to_string(&path).unwrap(), content);
                assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o755);
            }
            assert_eq!(fs::read_dir(&install.dir).unwrap().count(), 3, "no draft is left");
        }
    }

    #[test]
    fn what_is_written_into_one_name_changes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let install = Install { dir: dir.path().join("bin"), names: vec!["flannel", "portmap"], conflist: None };
        fs::create_dir(&install.dir).unwrap();
        fs::write(&source, "ours").unwrap();
        install.run(&source).unwrap();
        // As `cp -f`, on the way back to flannel's plugin.
        fs::write(install.dir.join("flannel"), "flannel's").unwrap();
        for name in ["netd-cni", "portmap"] {
            assert_eq!(fs::read_to_string(install.dir.join(name)).unwrap(), "ours", "{name}");
        }
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let install = Install { dir: dir.path().to_owned(), names: vec![], conflist: None };
        let error = install.run(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        fs::create_dir(dir.path().join("netd-cni")).unwrap();
        fs::write(dir.path().join("source"), "x").unwrap();
        install.run(&dir.path().join("source")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_draft_that_is_a_name_of_the_running_plugin_is_never_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let install = Install { dir: dir.path().to_owned(), names: vec![], conflist: None };
        let (source, main) = (dir.path().join("source"), dir.path().join("netd-cni"));
        fs::write(&source, "the new one").unwrap();
        fs::write(&main, "the running one").unwrap();
        // A call of the same process number was interrupted between its link and its rename.
        fs::hard_link(&main, draft_in(dir.path())).unwrap();
        let running = File::open(&main).unwrap();
        install.run(&source).unwrap();
        assert_eq!(io::read_to_string(running).unwrap(), "the running one");
        assert_eq!(fs::read_to_string(&main).unwrap(), "the new one");
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "netd-cni"}]}"#;

    #[test]
    fn a_list_comes_whole_behind_the_plugins_and_an_equal_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (source, list) = (dir.path().join("source"), dir.path().join("list"));
        let to = dir.path().join("net.d/10-netd.conflist");
        let install = Install { dir: dir.path().to_owned(), names: vec![], conflist: Some((list.clone(), to.clone())) };
        fs::write(&source, "x").unwrap();
        fs::write(&list, LIST).unwrap();
        assert_eq!(install.run(&source).unwrap(), [dir.path().join("netd-cni"), to.clone()]);
        assert_eq!(fs::read_to_string(&to).unwrap(), LIST);
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o644);
        let inode = fs::metadata(&to).unwrap().ino();
        assert_eq!(install.run(&source).unwrap(), [dir.path().join("netd-cni")]);
        assert_eq!(fs::metadata(&to).unwrap().ino(), inode);
        fs::write(&list, LIST.replace("cbr0", "pods")).unwrap();
        assert_eq!(install.run(&source).unwrap().len(), 2);
        assert!(fs::read_to_string(&to).unwrap().contains("pods"));
        assert_eq!(fs::read_dir(dir.path().join("net.d")).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_list_that_is_none_is_refused_before_anything_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let (source, list) = (dir.path().join("source"), dir.path().join("list"));
        let to = dir.path().join("net.d/10-netd.conflist");
        let install = Install { dir: dir.path().to_owned(), names: vec![], conflist: Some((list.clone(), to)) };
        fs::write(&source, "x").unwrap();
        for (text, word) in [
            ("{", "EOF"),
            (r#"{"plugins": [{"type": "x"}]}"#, "`name`"),
            (r#"{"name": "x", "plugins": []}"#, "`plugins`"),
            (r#"{"name": "x", "type": "bridge"}"#, "`plugins`"),
            (r#"{"name": "x", "plugins": [{"type": "x"}, {}]}"#, "`type`"),
        ] {
            fs::write(&list, text).unwrap();
            let error = install.run(&source).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("list"), "{text}: {error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{text}");
        }
    }
}
