//! `backup` and `restore`: a snapshot of etcd into a file, and what makes a cluster of it again.
//!
//! Invariants: a backup is announced before it is taken, and is whole or not there; nothing is announced to be restored that would
//! not be taken for a snapshot by etcd.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use daemon::status::escape;

use super::args::{Backup, Restore};
use super::{apply, said, verify};
use crate::backup;
use crate::members::{Member, Session, View};

/// Takes a snapshot.
///
/// # Errors
/// When no member gives one, or the file cannot be written.
pub(super) fn run(asked: &Backup, out: &mut impl Write) -> Result<ExitCode, String> {
    let Some(topology) = verify::topology(&asked.members.file, out)? else { return Ok(ExitCode::FAILURE) };
    let session = Session::open(&topology, &asked.members.output, Duration::from_secs(asked.members.timeout.into()))?;
    let view = session.view()?;
    let (text, member) = plan(&view, &asked.snapshot)?;
    said(out, &text)?;
    if !asked.yes && !apply::answer("take it?")? {
        return Err("nothing was written".to_owned());
    }
    let snapshot = backup::take(&session, member, &asked.snapshot)?;
    let text = format!(
        "{}: {} bytes, SHA-256 {}\nit holds every Secret in clear, and is of no use without what lies in {}: keep that as well, and the topology\n",
        asked.snapshot.display(),
        snapshot.size,
        snapshot.digest,
        asked.members.output.display()
    );
    said(out, &text)
}

/// What is done, and by which member: the one that follows and is furthest, lest the leader has the work.
fn plan<'a>(view: &'a View, path: &Path) -> Result<(String, &'a Member), String> {
    if path.symlink_metadata().is_ok() {
        return Err(format!("{} is there already; name another file", path.display()));
    }
    let member = view.best_follower().or_else(|| view.leader()).ok_or_else(|| view.leaderless())?;
    let status = member.status.clone()?;
    let mut text = format!(
        "take a snapshot of etcd from {}, which {}, at revision {}, some {} bytes, into {}\n",
        member.name(),
        if status.leader == status.id { "leads" } else { "follows" },
        status.revision,
        status.size,
        path.display()
    );
    for silent in view.members.iter().filter(|member| !member.serves()) {
        let reason = silent.status.as_ref().err().map_or("it has no leader", String::as_str);
        text += &format!("{} does not serve: {reason}\n", silent.name());
    }
    Ok((text, member))
}

/// Prints what makes a cluster of a snapshot.
///
/// # Errors
/// When the file is no whole snapshot.
pub(super) fn restore(asked: &Restore, out: &mut impl Write) -> Result<ExitCode, String> {
    let Some(topology) = verify::topology(&asked.file, out)? else { return Ok(ExitCode::FAILURE) };
    let snapshot = backup::verify(&asked.snapshot)?;
    let path = asked.snapshot.canonicalize().map_err(|cause| format!("read {}: {cause}", asked.snapshot.display()))?;
    let name = path.to_str().filter(|name| matches!(escape(name), Cow::Borrowed(_)));
    let name = name.ok_or_else(|| format!("{path:?} cannot stand in a command; give the file another name"))?;
    said(out, &backup::instructions(&topology, &snapshot, name))
}

#[cfg(test)]
mod tests {
    use cluster::etcd::{MemberEntry, MemberStatus};

    use super::*;
    use crate::command;

    fn member(id: u64, applied: u64) -> Member {
        let entry = MemberEntry { id, name: format!("m{id}"), ..MemberEntry::default() };
        let status = MemberStatus { id, leader: 1, revision: 7, applied, size: 20480, ..MemberStatus::default() };
        Member { entry, host: None, status: Ok(status) }
    }

    #[test]
    fn the_follower_that_is_furthest_has_the_work_and_who_does_not_serve_is_named() {
        let mut view = View { members: vec![member(1, 9), member(2, 8), member(3, 7)] };
        let path = Path::new("/nowhere/etcd.db");
        let (text, chosen) = plan(&view, path).unwrap();
        assert_eq!(
            (text.as_str(), chosen.entry.id),
            (
                "take a snapshot of etcd from m2, which follows, at revision 7, some 20480 bytes, into /nowhere/etcd.db\n",
                2
            )
        );
        for silent in [1, 2] {
            view.members[silent].status = Err("no answer".to_owned());
        }
        let (text, chosen) = plan(&view, path).unwrap();
        assert!(text.contains("from m1, which leads") && text.contains("m3 does not serve: no answer\n"), "{text}");
        assert_eq!(chosen.entry.id, 1);
        view.members[0].status = Err("no answer".to_owned());
        let refused = plan(&view, path).unwrap_err();
        assert!(
            refused.starts_with("no member of etcd leads: m1 does not answer: no answer; m2 does not"),
            "{refused}"
        );
        view.members.iter_mut().for_each(|member| member.status = Ok(MemberStatus::default()));
        assert_eq!(plan(&view, path).unwrap_err(), "no member of etcd leads: there is no quorum");
    }

    #[test]
    fn what_is_no_snapshot_is_not_restored_and_what_is_there_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        std::fs::write(&file, include_str!("../../../configs/clusters/reference.yaml")).unwrap();
        let (file, snapshot) = (file.to_str().unwrap(), folder.path().join("etcd.db"));
        std::fs::write(&snapshot, "junk").unwrap();
        let run = |words: &[&str]| command::run(["netdadm"].iter().chain(words).map(Into::into), &mut Vec::new());
        let refused = run(&["restore", "-f", file, snapshot.to_str().unwrap()]).unwrap_err();
        assert!(refused.contains("etcd.db: 4 bytes are no whole snapshot"), "{refused}");
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [pipe.to_str().unwrap(), "/dev/zero", "/dev"] {
            let refused = run(&["restore", "-f", file, other]).unwrap_err();
            assert_eq!(refused, format!("{other} is no file"));
        }
        let refused = run(&["backup", "-f", file, "-o", "/nowhere", "/nowhere/etcd.db"]).unwrap_err();
        assert_eq!(refused, "/nowhere/pki/etcd/ca.crt is not there; name the folder that `netdadm render` wrote by -o");
        let refused = plan(&View { members: vec![member(1, 1)] }, &snapshot).unwrap_err();
        assert!(refused.ends_with("etcd.db is there already; name another file"), "{refused}");
    }
}
