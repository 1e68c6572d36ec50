//! `netd-cni install [--as NAME,NAME] DIR`: puts the binary where runtimes look for plugins.
//!
//! Invariant: at no time does a name in `DIR` stand for half a file, and a running plugin is never written to: the
//! copy is made beside its place, synced, and renamed (libcni retries "text file busy" for seconds each). Other names
//! are further names of the same file.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::roles::name::PluginName;

/// What `install` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// The directory, `/opt/cni/bin` on most nodes.
    pub dir: PathBuf,
    /// Names besides `netd-cni`.
    pub names: Vec<&'static str>,
}

/// How the command is written.
pub const USAGE: &str = "usage: netd-cni install [--as NAME[,NAME...]] DIR";

/// Why nothing, or not everything, was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The command line is not understood.
    #[error("{0}\n{USAGE}")]
    Usage(String),
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
        let (mut dir, mut names) = (None, Vec::new());
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--as" => {
                    let list = words.next().ok_or_else(|| usage("--as needs names".to_owned()))?;
                    for name in list.split(',') {
                        names.push(known(name).ok_or_else(|| {
                            usage(format!("{name:?} is no plugin of this binary: {}", known_names()))
                        })?);
                    }
                }
                option if option.starts_with('-') => return Err(usage(format!("unknown option {option}"))),
                _ if dir.is_some() => return Err(usage(format!("one directory only, not {word} as well"))),
                _ => dir = Some(PathBuf::from(word)),
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(Self { dir: dir.ok_or_else(|| usage("which directory?".to_owned()))?, names })
    }

    /// Installs the file at `source`; answers the paths that now stand for it.
    ///
    /// # Errors
    /// When the file system refuses; names that were done before stay.
    pub fn run(&self, source: &Path) -> Result<Vec<PathBuf>, InstallError> {
        let main = self.dir.join("netd-cni");
        let draft = self.draft();
        let result = self.copy(source, &draft).and_then(|()| replace(&draft, &main));
        if result.is_err() {
            // The draft is ours alone; that it is gone already is fine.
            let _ = fs::remove_file(&draft);
        }
        result?;
        let mut installed = vec![main.clone()];
        for name in self.names.iter().filter(|name| **name != "netd-cni") {
            let path = self.dir.join(name);
            let _ = fs::remove_file(&draft);
            fs::hard_link(&main, &draft).map_err(failed("link", &draft))?;
            replace(&draft, &path)?;
            installed.push(path);
        }
        // rename(2) of two names of one file does nothing and leaves the draft.
        let _ = fs::remove_file(&draft);
        let dir = File::open(&self.dir).map_err(failed("open", &self.dir))?;
        dir.sync_all().map_err(failed("sync", &self.dir))?;
        Ok(installed)
    }

    /// Beside the final names, with a name that no runtime takes for a plugin.
    fn draft(&self) -> PathBuf {
        self.dir.join(format!(".netd-cni-{}", std::process::id()))
    }

    fn copy(&self, source: &Path, draft: &Path) -> Result<(), InstallError> {
        let mut from = File::open(source).map_err(failed("open", source))?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o755).custom_flags(nix::libc::O_NOFOLLOW);
        let mut to = options.open(draft).map_err(failed("create", draft))?;
        io::copy(&mut from, &mut to).map_err(failed("write", draft))?;
        to.set_permissions(Permissions::from_mode(0o755)).map_err(failed("set the mode of", draft))?;
        to.sync_all().map_err(failed("sync", draft))
    }
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
        assert_eq!(install, Install { dir: PathBuf::from("/opt/cni/bin"), names: vec!["flannel", "portmap"] });
        assert_eq!(parse("/x --as flannel").unwrap().names, ["flannel"]);
        assert_eq!(parse("--as bridge /x").unwrap().names, ["bridge"]);
        for bad in ["", "--as", "--as macvlan /x", "/x /y", "--force /x", "--as flannel"] {
            assert!(parse(bad).unwrap_err().to_string().contains(USAGE), "{bad}");
        }
    }

    #[test]
    fn names_stand_for_one_file_and_replace_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        let install = Install { dir: dir.path().join("bin"), names: vec!["flannel", "portmap"] };
        fs::create_dir(&install.dir).unwrap();
        fs::write(install.dir.join("flannel"), "the former one").unwrap();
        for content in ["one", "two", "two"] {
            fs::write(&source, content).unwrap();
            assert_eq!(install.run(&source).unwrap().len(), 3);
            let inodes: Vec<u64> = ["netd-cni", "flannel", "portmap"]
                .map(|name| {
                    let path = install.dir.join(name);
                    assert_eq!(fs::read_to_string(&path).unwrap(), content);
                    let meta = fs::metadata(path).unwrap();
                    assert_eq!(meta.mode() & 0o777, 0o755);
                    meta.ino()
                })
                .to_vec();
            assert!(inodes.windows(2).all(|pair| pair[0] == pair[1]));
            assert_eq!(fs::read_dir(&install.dir).unwrap().count(), 3, "no draft is left");
        }
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let install = Install { dir: dir.path().to_owned(), names: vec![] };
        let error = install.run(&dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        fs::create_dir(dir.path().join("netd-cni")).unwrap();
        fs::write(dir.path().join("source"), "x").unwrap();
        install.run(&dir.path().join("source")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
