//! `Place`: a path below a root, as an open folder and a name in it.
//!
//! Invariant: whatever links lie on the way, nothing outside of the root is reached (openat2(2), RESOLVE_IN_ROOT): a tree made for another
//! machine may hold links that are absolute there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, symlinkat, unlinkat};

/// What stands behind the name of a file that is being written, and of one that was replaced a moment ago.
const DRAFT: &str = ".netdadm-new";
const EARLIER: &str = ".netdadm-old";

/// Folders of the host, and those that nobody but root passes.
pub(super) const PUBLIC: Mode = Mode::from_bits_truncate(0o755);
pub(super) const PRIVATE: Mode = Mode::S_IRWXU;

/// An open folder below the root and a name in it.
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
}

/// Whose file it is, and who may do what with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Place {
    /// The place of `path`; `None` when its folder is not there.
    pub(super) fn find(root: &OwnedFd, path: &Path) -> io::Result<Option<Self>> {
        let (folder, name) = split(path)?;
        match open_folder(root, folder) {
            Ok(folder) => Ok(Some(Self { folder, name })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The place of `path`; folders that are not there are made with `mode`, whatever the mask of the caller is.
    pub(super) fn make(root: &OwnedFd, path: &Path, mode: Mode) -> io::Result<Self> {
        let (folder, name) = split(path)?;
        let mut reached = PathBuf::new();
        for step in folder.components() {
            let Component::Normal(step) = step else { continue };
            let above = open_folder(root, &reached)?;
            reached.push(step);
            match mkdirat(&above, step, mode) {
                Ok(()) => {
                    fchmod(open_folder(root, &reached)?, mode)?;
                    sync(&above)?;
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Self { folder: open_folder(root, folder)?, name })
    }

    /// What stands there itself, a link as a link; `None` for nothing.
    pub(super) fn status(&self) -> io::Result<Option<FileStat>> {
        match fstatat(&self.folder, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where the link leads that stands there.
    pub(super) fn link(&self) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.folder, self.name.as_os_str())?.into())
    }

    /// The content of the file that stands there.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = File::from(openat(&self.folder, self.name.as_os_str(), flags, Mode::empty())?);
        bounded::from(file, bounded::MANIFEST)
    }

    /// Writes `content` beside the place, down to the disk. Nobody but root reads it before its rights are what they shall be.
    pub(super) fn write_draft(&self, content: &[u8], rights: Rights) -> io::Result<()> {
        self.remove_draft()?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file =
            File::from(openat(&self.folder, self.beside(DRAFT).as_os_str(), flags, Mode::from_bits_truncate(0o600))?);
        file.write_all(content)?;
        fchown(&file, Some(Uid::from_raw(rights.user)), Some(Gid::from_raw(rights.group)))?;
        fchmod(&file, Mode::from_bits_truncate(rights.mode))?;
        file.sync_all()
    }

    /// Makes a link beside the place.
    pub(super) fn link_draft(&self, to: &Path) -> io::Result<()> {
        self.remove_draft()?;
        Ok(symlinkat(to, &self.folder, self.beside(DRAFT).as_os_str())?)
    }

    /// Puts the draft into its place, in one step.
    pub(super) fn publish(&self) -> io::Result<()> {
        renameat(&self.folder, self.beside(DRAFT).as_os_str(), &self.folder, self.name.as_os_str())?;
        sync(&self.folder)
    }

    /// Gives what stands there a second name, by which it comes back without any room on the disk.
    pub(super) fn hold_earlier(&self) -> io::Result<()> {
        self.remove_earlier()?;
        let earlier = self.beside(EARLIER);
        linkat(&self.folder, self.name.as_os_str(), &self.folder, earlier.as_os_str(), AtFlags::empty())?;
        Ok(())
    }

    /// Takes away what stands there; it can be put back.
    pub(super) fn set_aside(&self) -> io::Result<()> {
        renameat(&self.folder, self.name.as_os_str(), &self.folder, self.beside(EARLIER).as_os_str())?;
        sync(&self.folder)
    }

    /// Puts back what was held or set aside. `false`: there is nothing of that kind.
    pub(super) fn restore(&self) -> io::Result<bool> {
        let earlier = self.beside(EARLIER);
        match renameat(&self.folder, earlier.as_os_str(), &self.folder, self.name.as_os_str()) {
            // Two names of one file stay where they are (rename(2)).
            Ok(()) => self.remove_earlier().and_then(|()| sync(&self.folder)).map(|()| true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what stands there; what is gone is no error.
    pub(super) fn remove(&self) -> io::Result<()> {
        gone(unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir))?;
        sync(&self.folder)
    }

    /// Removes the folder that stands there if nothing is in it.
    pub(super) fn remove_empty_folder(&self) -> io::Result<()> {
        match unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => Ok(()),
            other => gone(other),
        }
    }

    /// Locks the file that stands there, made if need be; `None` when it is locked already (flock(2)).
    pub(super) fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.folder, self.name.as_os_str(), flags, Mode::from_bits_truncate(0o600))?);
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    pub(super) fn remove_draft(&self) -> io::Result<()> {
        gone(unlinkat(&self.folder, self.beside(DRAFT).as_os_str(), UnlinkatFlags::NoRemoveDir))
    }

    pub(super) fn remove_earlier(&self) -> io::Result<()> {
        gone(unlinkat(&self.folder, self.beside(EARLIER).as_os_str(), UnlinkatFlags::NoRemoveDir))
    }

    /// A name that no program takes for one of its files: it begins with a dot and ends with our own word.
    fn beside(&self, end: &str) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(end);
        name
    }
}

/// Whether it is a file whose content can be read, and otherwise what it is.
pub(super) fn kind(status: &FileStat) -> Result<(), &'static str> {
    match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG if u64::try_from(status.st_size).is_ok_and(|size| size > bounded::MANIFEST) => {
            Err("file of more than 16 MiB")
        }
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFLNK => Err("link"),
        SFlag::S_IFDIR => Err("folder"),
        _ => Err("device, pipe or socket"),
    }
}

fn split(path: &Path) -> io::Result<(&Path, OsString)> {
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => Ok((folder, name.to_owned())),
        _ => Err(Errno::EISDIR.into()),
    }
}

fn open_folder(root: &OwnedFd, folder: &Path) -> nix::Result<OwnedFd> {
    let inside = folder.strip_prefix("/").unwrap_or(folder);
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat2(root, inside, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT))
}

fn gone(removed: nix::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn sync(folder: impl AsFd) -> io::Result<()> {
    Ok(nix::unistd::fsync(folder)?)
}
