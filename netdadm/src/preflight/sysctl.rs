//! Parameters of the kernel: what they are now, and which file will set them at the next start.
//!
//! Pure. Invariant: files are taken in the order of sysctl.d(5): by name, one of /etc instead of its namesake of /usr, the
//! last that sets a key counts; /etc/sysctl.conf comes behind all of them, as `sysctl --system` has it.

use std::collections::BTreeMap;

use daemon::doctor::Trouble;

use super::facts::{Case, Facts};

/// Folders of files, the most important first.
pub(crate) const FOLDERS: [&str; 4] =
    ["/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d"];

/// The last file of all.
pub(crate) const LAST: &str = "/etc/sysctl.conf";

/// The file that sets `key` at the next start, and to what.
pub(super) fn setting<'a>(facts: &'a Facts, key: &str) -> Option<(&'a str, &'a str)> {
    let mut files: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for folder in FOLDERS {
        for (path, text) in facts.files_in(folder) {
            let name = path.rsplit('/').next().unwrap_or_default();
            if name.ends_with(".conf") {
                files.entry(name).or_insert((path, text));
            }
        }
    }
    let last = facts.text(LAST).map(|text| (LAST, text));
    let sets = |(path, text): (&'a str, &'a str)| {
        text.lines().filter_map(assignment).rfind(|(name, _)| is(name, key)).map(|(_, value)| (path, value))
    };
    files.into_values().chain(last).filter_map(sets).next_back()
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    Some((name.trim().trim_start_matches('-'), value.trim()))
}

/// Names have dots or slashes.
fn is(name: &str, key: &str) -> bool {
    name == key || name.replace('/', ".") == key
}

/// A parameter that has to have a value, and what it costs where it has another one.
pub(super) struct Wanted<'a> {
    pub(super) key: &'a str,
    pub(super) value: u64,
    pub(super) cost: &'a str,
}

/// What is wrong with a parameter now, and at the next start.
pub(super) fn judge(case: &Case, wanted: &Wanted<'_>) -> Option<Trouble> {
    let Wanted { key, value, cost } = wanted;
    let now = case.facts.parameter(key)?;
    let later = setting(&case.facts, key).filter(|(_, text)| text.parse() != Ok(*value));
    match (now == *value, later) {
        (true, None) => None,
        (true, Some((file, text))) => Some(Trouble::problem(
            format!("{file} sets {key} to {text} when this host starts: {cost}"),
            format!("take {key} out of {file}, or set it to {value} there"),
        )),
        (false, Some((file, text))) => Some(Trouble::problem(
            format!("{key} is {now}, and {file} sets it to {text}: {cost}"),
            format!("sysctl -w {key}={value}, and set it to {value} in {file}"),
        )),
        (false, None) => Some(Trouble::problem(
            format!("{key} is {now}: {cost}"),
            format!("sysctl -w {key}={value}, and write {key} = {value} into /etc/sysctl.d/90-kubernetes.conf"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_that_sets_a_key_counts_and_etc_hides_its_namesake() {
        let case = Case::planted(&[
            ("/usr/lib/sysctl.d/50-default.conf", "net.ipv4.ip_forward=1\n"),
            ("/usr/lib/sysctl.d/99-vendor.conf", "net/ipv4/ip_forward = 0\n"),
            ("/etc/sysctl.d/60-own.conf", "# net.ipv4.ip_forward = 7\n-net.ipv4.ip_forward = 1\n"),
        ]);
        let key = "net.ipv4.ip_forward";
        assert_eq!(setting(&case.facts, key), Some(("/usr/lib/sysctl.d/99-vendor.conf", "0")));
        let mut hidden = case.clone();
        hidden.facts.texts.insert("/etc/sysctl.d/99-vendor.conf".into(), "; nothing".into());
        assert_eq!(setting(&hidden.facts, key), Some(("/etc/sysctl.d/60-own.conf", "1")));
        hidden.facts.texts.insert(LAST.into(), "net.ipv4.ip_forward=0".into());
        assert_eq!(setting(&hidden.facts, key), Some((LAST, "0")));
        assert_eq!(setting(&hidden.facts, "net.ipv4.ip_forward_use_pmtu"), None);
    }
}
