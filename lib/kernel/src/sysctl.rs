//! Kernel parameters under /proc/sys/net.
//!
//! Invariants. That a parameter cannot be written is no error where it has the value already: /proc/sys is read-only in an
//! unprivileged container, and the host may have set it. Parameters are never removed: what they
//! were before is unknown.
//!
//! /proc/sys/net shows the network namespace of the process that opens the file, wherever it is mounted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use netstate::SysctlKey;
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::error::{Cause, KernelError};

/// Where a container without the rights of the whole host has the host's /proc/sys/net, below `net`: its own /proc/sys is read-only, and no
/// runtime mounts anything there (checkProcMount of runc and crun).
const MOUNTED: &str = "/host/proc/sys";

/// The value of `key`, without its trailing newline, in the calling thread's network namespace.
///
/// # Errors
/// When the parameter does not exist or cannot be read.
pub fn read(key: &SysctlKey) -> Result<String, KernelError> {
    read_whole(&path(key)).map_err(|source| error("read parameter", key, source))
}

/// Whether the calling thread's network namespace shows `key` for reading alone, whoever asks: it is one of the whole machine, such as the size
/// of the table of connections, and this is not the machine's own network.
#[must_use]
pub fn is_of_machine(key: &SysctlKey) -> bool {
    std::fs::metadata(path(key)).is_ok_and(|found| found.permissions().mode() & 0o222 == 0)
}

/// The identifier of this boot; empty where the kernel does not say.
#[must_use]
pub fn boot_id() -> String {
    read_whole(Path::new("/proc/sys/kernel/random/boot_id")).unwrap_or_default()
}

fn read_whole(path: &Path) -> io::Result<String> {
    value(&File::open(path)?)
}

/// A parameter's value without its trailing newline, from the beginning of its open file. A reading that leaves room was the last one
/// (proc_sys_call_handler), so neither the size, which is unknown, nor the end is asked for.
fn value(file: &File) -> io::Result<String> {
    let (mut text, mut piece, mut at) = (Vec::new(), [0; 256], 0);
    loop {
        let length = file.read_at(&mut piece, at)?;
        at = at.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        text.extend_from_slice(piece.get(..length).unwrap_or_default());
        if length < piece.len() {
            break;
        }
    }
    text.truncate(text.trim_ascii_end().len());
    String::from_utf8(text).map_err(|source| io::Error::new(io::ErrorKind::InvalidData, source))
}

/// Makes `key` have `value`; writes only when it differs.
///
/// # Errors
/// When the parameter does not exist, or differs and cannot be written.
pub fn write(key: &SysctlKey, value: &str) -> Result<(), KernelError> {
    if read(key)? == value {
        return Ok(());
    }
    put(key, value, Path::new(MOUNTED)).map_err(|source| error("write parameter", key, source))
}

/// Writes the parameter; where /proc/sys is read-only, by what is mounted at `other`.
fn put(key: &SysctlKey, value: &str, other: &Path) -> io::Result<()> {
    let write =
        |path: PathBuf| OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    let refused = match write(path(key)) {
        Err(refused) if refused.kind() == io::ErrorKind::ReadOnlyFilesystem => refused,
        done => return done,
    };
    match write(other.join(key.as_str())) {
        // Nothing is mounted: the parameter is there, and what was said of it counts.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(refused),
        done => done,
    }
}

/// Makes `key` have `value` without reading it first: for a parameter of a link that was just made, which nobody has set. Where it
/// cannot be written it is read after all.
///
/// # Errors
/// As [`write()`].
pub fn set_new(key: &SysctlKey, value: &str) -> Result<(), KernelError> {
    put(key, value, Path::new(MOUNTED)).or_else(|_| write(key, value))
}

fn path(key: &SysctlKey) -> PathBuf {
    Path::new("/proc/sys").join(key.as_str())
}

fn error(op: &'static str, key: &SysctlKey, source: io::Error) -> KernelError {
    if source.kind() == io::ErrorKind::NotFound {
        return KernelError::new(op, key, Cause::Missing(format!("/proc/sys/{key}")));
    }
    KernelError::io(op, key, "open", source)
}

/// The parameters that are desired, as a table. Their files stay open: whoever reads them every second needs one call for each then.
#[derive(Debug, Default)]
pub struct Sysctls {
    parameters: Vec<Parameter>,
}

/// A parameter with its file, once that was opened.
#[derive(Debug)]
struct Parameter {
    key: SysctlKey,
    file: Option<File>,
}

impl Parameter {
    /// The value as it is now. The file of a parameter that went and came back, as with a link or a module, is another one.
    fn read(&mut self) -> Result<String, KernelError> {
        let path = path(&self.key);
        if let Some(value) = self.file.as_ref().and_then(|file| value(file).ok()) {
            return Ok(value);
        }
        self.file = None;
        let opened = File::open(&path).and_then(|file| Ok((value(&file)?, file)));
        let (value, file) = opened.map_err(|source| error("read parameter", &self.key, source))?;
        self.file = Some(file);
        Ok(value)
    }
}

impl Sysctls {
    /// The parameters `keys` of the calling thread's network namespace.
    pub fn new(keys: impl IntoIterator<Item = SysctlKey>) -> Self {
        Self { parameters: keys.into_iter().map(|key| Parameter { key, file: None }).collect() }
    }
}

impl Target for Sysctls {
    type Key = SysctlKey;
    type Value = String;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<SysctlKey, String>, KernelError> {
        let mut rows = Rows::new();
        for parameter in &mut self.parameters {
            match parameter.read() {
                Ok(value) => rows.insert(parameter.key.clone(), Observed { value, owner: Owner::Foreign }),
                // A parameter of a link that is not there yet: the write will say so and wait.
                Err(KernelError { cause: Cause::Missing(_), .. }) => continue,
                Err(error) => return Err(error),
            };
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<SysctlKey, String>]) -> Vec<Result<(), KernelError>> {
        let step = |step: &Step<SysctlKey, String>| match step {
            Step::Create(key, value) | Step::Change(key, _, value) => write(key, value),
            Step::Remove(..) => Ok(()),
        };
        steps.iter().map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Chain;

    #[test]
    fn parameter_that_is_not_there_is_missing_and_anything_else_is_a_failed_call() {
        let key: SysctlKey = "net/ipv4/conf/veth1/rp_filter".parse().unwrap();
        assert_eq!(path(&key), Path::new("/proc/sys/net/ipv4/conf/veth1/rp_filter"));
        let missing = error("read parameter", &key, io::Error::from_raw_os_error(libc::ENOENT));
        assert!(matches!(missing.cause, Cause::Missing(_)), "{}", Chain(&missing));
        let refused = error("write parameter", &key, io::Error::from_raw_os_error(libc::EROFS));
        assert_eq!(refused.errno(), Some(libc::EROFS));
    }

    #[test]
    fn value_is_read_without_its_end_of_line_and_an_equal_one_is_not_written() {
        let key: SysctlKey = "net/ipv4/ip_local_port_range".parse().unwrap();
        let Ok(value) = read(&key) else { return };
        assert_eq!(value, value.trim_end());
        // Writable or not: it has the value already.
        write(&key, &value).unwrap();
        set_new(&key, &value).unwrap();
    }

    #[test]
    fn parameter_of_the_machine_is_known_in_another_network() {
        let [size, age] = ["nf_conntrack_max", "nf_conntrack_udp_timeout"]
            .map(|name| format!("net/netfilter/{name}").parse::<SysctlKey>().unwrap());
        let ask = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            // Without connection tracking the kernel has neither.
            read(&size).ok().map(|_| (is_of_machine(&size), is_of_machine(&age)))
        };
        if let Some(answers) = std::thread::spawn(ask).join().unwrap() {
            assert_eq!(answers, (true, false));
        }
    }

    #[test]
    fn value_of_any_length_is_read_whole() {
        let path = std::env::temp_dir().join(format!("netd-sysctl-{}", std::process::id()));
        for length in [0, 1, 255, 256, 257, 700] {
            let value = "1".repeat(length);
            fs::write(&path, format!("{value}\n")).unwrap();
            assert_eq!(read_whole(&path).unwrap(), value);
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_mounted_elsewhere_counts_only_where_the_own_one_is_read_only() {
        let key: SysctlKey = "net/no/such/parameter".parse().unwrap();
        let folder = std::env::temp_dir().join(format!("netd-mounted-{}", std::process::id()));
        fs::create_dir_all(folder.join("net/no/such")).unwrap();
        fs::write(folder.join(key.as_str()), "0").unwrap();
        assert_eq!(put(&key, "1", &folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_to_string(folder.join(key.as_str())).unwrap(), "0");
        fs::remove_dir_all(&folder).unwrap();
    }
}
