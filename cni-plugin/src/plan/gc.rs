//! GC: which of the attachments that left something here are valid no more.
//!
//! Pure. Owners come from records, reservations and flannel's state files; some of the latter know the container only.

use std::collections::BTreeSet;

use crate::protocol::attachment::{Attachment, ContainerId};

/// Who owns something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One interface of a container.
    Attachment(Attachment),
    /// A container, whichever interface: files of host-local before 0.7, and of flannel's plugin.
    Container(ContainerId),
}

impl Subject {
    /// Reads the content of a reservation: `<container>\r\n<interface>`, or the container alone, as host-local wrote it before 0.7. The
    /// runtimes of that time gave containers 64 hexadecimal digits or a UUID (RFC 9562); another word is somebody's who keeps the address.
    #[must_use]
    pub fn of_reservation(text: &str) -> Option<Self> {
        match text.trim().split_once("\r\n") {
            Some((container, ifname)) => {
                let (container, ifname) = (ContainerId::new(container)?, ifname.parse().ok()?);
                Some(Self::Attachment(Attachment::new(container, ifname)))
            }
            None => ContainerId::new(text.trim()).filter(is_generated).map(Self::Container),
        }
    }

    /// Reads the name of a record: `<container>@<interface>`.
    #[must_use]
    pub fn of_record(name: &str) -> Option<Self> {
        let (container, ifname) = name.split_once('@')?;
        let (container, ifname) = (ContainerId::new(container)?, ifname.parse().ok()?);
        Some(Self::Attachment(Attachment::new(container, ifname)))
    }

    /// True when `valid` lists it; a container counts with any of its interfaces.
    #[must_use]
    pub fn is_valid(&self, valid: &[Attachment]) -> bool {
        match self {
            Self::Attachment(attachment) => valid.contains(attachment),
            Self::Container(container) => valid.iter().any(|attachment| attachment.container == *container),
        }
    }
}

/// True for an identifier that a runtime has made up.
fn is_generated(container: &ContainerId) -> bool {
    let digits = container.as_str().bytes().filter(|byte| *byte != b'-');
    container.as_str().bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') && digits.count() >= DIGITS
}

/// Digits of the shortest identifier that a runtime makes up, of 128 bits.
const DIGITS: usize = 32;

/// Those of `owners` that `valid` does not name, each once.
#[must_use]
pub(crate) fn stale(owners: impl IntoIterator<Item = Subject>, valid: &[Attachment]) -> BTreeSet<Subject> {
    owners.into_iter().filter(|owner| !owner.is_valid(valid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment::new(ContainerId::new(container).unwrap(), ifname.parse().unwrap())
    }

    #[test]
    fn owners_are_read_from_names_and_contents() {
        let owner = Subject::Attachment(attachment("c1", "eth0"));
        assert_eq!(Subject::of_reservation("c1\r\neth0"), Some(owner.clone()));
        assert_eq!(Subject::of_record("c1@eth0"), Some(owner));
        assert_eq!(Subject::of_record("c1@a@b"), Some(Subject::Attachment(attachment("c1", "a@b"))));
        for id in ["3f".repeat(32), "110ec58a-a0f2-4ac4-8393-c866d813b8d1".to_owned()] {
            let owner = Subject::Container(ContainerId::new(&id).unwrap());
            assert_eq!(Subject::of_reservation(&format!(" {id}\n")), Some(owner));
        }
        for kept in ["reserved", "printer-3", "deadbeef", "10.4.7.9", "not-for-pods-but-for-the-old-printer"] {
            assert_eq!(Subject::of_reservation(kept), None, "{kept}");
        }
        for junk in ["", "../x", "c1\r\nway-too-long-a-name", "\u{0}"] {
            assert_eq!(Subject::of_reservation(junk), None, "{junk:?}");
        }
        assert_eq!(Subject::of_record("lock"), None);
    }

    #[test]
    fn only_what_nobody_lists_is_stale() {
        let valid = [attachment("c1", "eth0"), attachment("c2", "eth0")];
        let container = |id| Subject::Container(ContainerId::new(id).unwrap());
        let owners = [
            Subject::Attachment(attachment("c1", "eth0")),
            Subject::Attachment(attachment("c1", "net1")),
            Subject::Attachment(attachment("c3", "eth0")),
            Subject::Attachment(attachment("c3", "eth0")),
            container("c2"),
            container("c4"),
        ];
        let expected = [
            Subject::Attachment(attachment("c1", "net1")),
            Subject::Attachment(attachment("c3", "eth0")),
            container("c4"),
        ];
        assert_eq!(stale(owners.clone(), &valid), expected.into_iter().collect());
        assert_eq!(stale(owners, &[]).len(), 5, "an empty list makes everything stale");
    }
}
