//! The folder that the operator's own program watches, where that carries the packets.
//!
//! Invariants: a file is there or not, and whole at any time; whatever else is in the folder of leases goes, and nothing
//! outside is touched. `backend-data` is the program's own: it is read once, at the start, as flannel reads the output of
//! its first command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kernel::KernelError;
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::plan::backend::FileText;
use daemon::files;

/// The folder below that of run-time files.
const FOLDER: &str = "extension";

/// What the operator's program says for this node's lease.
const DATA: &str = "backend-data";

/// Folder of the other nodes' files.
const SUBNETS: &str = "subnets";

/// The most that it may have: etcd takes 1.5 MiB for a whole request.
const LONGEST: u64 = 64 * 1024;

/// Reads what the operator's program says; `None` when it has said nothing.
///
/// # Errors
/// When the file is there and cannot be read, is no text or too long.
pub(super) fn data(run_dir: &Path) -> Result<Option<String>> {
    let path = run_dir.join(FOLDER).join(DATA);
    let said = || format!("read {}", path.display());
    match bounded::read_text(&path, LONGEST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => Ok(Some(text.with_context(said)?.trim().to_owned())),
    }
}

/// The files as a table.
pub(super) struct EventFiles {
    folder: PathBuf,
}

impl EventFiles {
    pub(super) fn below(run_dir: &Path) -> Self {
        Self { folder: run_dir.join(FOLDER) }
    }

    fn observe(&self) -> io::Result<Rows<String, FileText>> {
        let mut rows = Rows::new();
        let subnets = match fs::read_dir(self.folder.join(SUBNETS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?.collect::<io::Result<Vec<_>>>()?,
        };
        let names = subnets.iter().filter_map(|entry| Some(format!("{SUBNETS}/{}", entry.file_name().to_str()?)));
        for name in names.chain(["node.env".to_owned()]) {
            match bounded::read(&self.folder.join(&name), bounded::SETTINGS) {
                Ok(bytes) => {
                    let value = FileText(String::from_utf8_lossy(&bytes).into_owned());
                    rows.insert(name, Observed { value, owner: Owner::Ours });
                }
                // None that this daemon wrote, whatever it holds or is.
                Err(error) if matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput) => {
                    rows.insert(name, Observed { value: FileText(String::new()), owner: Owner::Ours });
                }
                // Gone meanwhile, or a folder.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rows)
    }

    fn step(&self, step: &Step<String, FileText>) -> io::Result<()> {
        let path = self.folder.join(step.key());
        match step {
            Step::Create(_, text) | Step::Change(_, _, text) => files::replace(&path, text.0.as_bytes()).map(drop),
            Step::Remove(..) => match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        }
    }
}

impl Target for EventFiles {
    type Key = String;
    type Value = FileText;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<String, FileText>, KernelError> {
        let folder = self.folder.display().to_string();
        Self::observe(self).map_err(|error| KernelError::io("list", &folder, "read", error))
    }

    fn apply(&mut self, steps: &[Step<String, FileText>]) -> Vec<Result<(), KernelError>> {
        let named = |step: &Step<String, FileText>| {
            let path = self.folder.join(step.key()).display().to_string();
            self.step(step).map_err(|error| KernelError::io("write", path, "file", error))
        };
        steps.iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reconcile::{Reconciler, Stage};
    use std::time::Duration;

    #[test]
    fn files_are_kept_equal_to_the_rows_and_nothing_else_is_touched() {
        let run_dir = tempfile::tempdir().unwrap();
        let folder = run_dir.path().join(FOLDER);
        let mut table = Reconciler::new("files", EventFiles::below(run_dir.path()));
        let text = |text: &str| Some(FileText(text.to_owned()));
        table.want("node.env".to_owned(), text("SUBNET=172.7.21.0/24\n\n"));
        table.want("subnets/172.7.22.0-24".to_owned(), text("SUBNET=172.7.22.0/24\n\nsome\ndata"));
        assert_eq!(table.pass(true, Duration::ZERO).upserted, 2);
        fs::write(folder.join(DATA), "mine\n").unwrap();
        fs::write(folder.join("subnets/172.7.99.0-24"), "left over").unwrap();
        fs::create_dir(folder.join("subnets/folder")).unwrap();
        fs::remove_file(folder.join("node.env")).unwrap();
        table.invalidate();
        let pass = table.pass(true, Duration::ZERO);
        assert_eq!((pass.upserted, pass.removed, pass.failed), (1, 1, 0), "{pass:?}");
        assert_eq!(
            fs::read_to_string(folder.join("subnets/172.7.22.0-24")).unwrap(),
            "SUBNET=172.7.22.0/24\n\nsome\ndata"
        );
        assert!(!folder.join("subnets/172.7.99.0-24").exists() && folder.join("node.env").exists());
        assert_eq!(data(run_dir.path()).unwrap().as_deref(), Some("mine"));
        table.want("subnets/172.7.22.0-24".to_owned(), None);
        assert_eq!(table.pass(true, Duration::ZERO).removed, 1);
    }

    #[test]
    fn a_pipe_or_a_file_without_end_in_the_place_of_one_gives_way_to_it() {
        let run_dir = tempfile::tempdir().unwrap();
        let subnets = run_dir.path().join(FOLDER).join(SUBNETS);
        fs::create_dir_all(&subnets).unwrap();
        for name in ["172.7.22.0-24", "172.7.99.0-24"] {
            nix::unistd::mkfifo(&subnets.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        std::os::unix::fs::symlink("/dev/zero", subnets.join("172.7.98.0-24")).unwrap();
        let mut table = Reconciler::new("files", EventFiles::below(run_dir.path()));
        table.want("subnets/172.7.22.0-24".to_owned(), Some(FileText("SUBNET=172.7.22.0/24\n\n".to_owned())));
        let pass = table.pass(true, Duration::ZERO);
        assert_eq!((pass.upserted, pass.removed, pass.failed), (1, 2, 0), "{pass:?}");
        assert!(fs::symlink_metadata(subnets.join("172.7.22.0-24")).unwrap().is_file());
    }

    #[test]
    fn what_the_program_says_is_a_text_of_bounded_length_or_nothing() {
        let run_dir = tempfile::tempdir().unwrap();
        assert_eq!(data(run_dir.path()).unwrap(), None);
        fs::create_dir(run_dir.path().join(FOLDER)).unwrap();
        let path = run_dir.path().join(FOLDER).join(DATA);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(format!("{:#}", data(run_dir.path()).unwrap_err()).contains("backend-data"));
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(format!("{:#}", data(run_dir.path()).unwrap_err()).contains("more than 65536 bytes"));
    }
}
