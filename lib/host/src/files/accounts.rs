//! Users and groups of the machine whose tree it is, by its own files: a tree below another root has its own numbers.
//!
//! Invariant: a name that the files do not have is named in the error, with what makes it.

use std::collections::BTreeMap;

use crate::manifest::FileOwner;

/// Who has the files that nobody else needs.
const ROOT: &str = "root";

/// Names and numbers of `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    users: Names,
    groups: Names,
}

/// Names with their numbers, and the name of each number.
#[derive(Debug, Default)]
struct Names {
    numbers: BTreeMap<String, u32>,
    names: BTreeMap<u32, String>,
}

impl Accounts {
    /// Reads both texts; lines of another form count for nothing, as for the C library.
    pub(crate) fn parse(passwd: &str, group: &str) -> Self {
        Self { users: Names::read(passwd), groups: Names::read(group) }
    }

    /// The numbers of an owner.
    ///
    /// # Errors
    /// Which name is unknown.
    pub(crate) fn numbers(&self, owner: &FileOwner) -> Result<(u32, u32), String> {
        let (user, group) = (self.users.numbers.get(owner.user()), self.groups.numbers.get(owner.group()));
        match (user, group) {
            (Some(user), Some(group)) => Ok((*user, *group)),
            // root is 0 without a file that says so.
            _ if owner == &FileOwner::root() => Ok((0, 0)),
            (None, _) => Err(format!(
                "no user {0} in /etc/passwd; make it: useradd --system --shell /usr/sbin/nologin {0}",
                owner.user()
            )),
            (_, None) => Err(format!("no group {0} in /etc/group; make it: groupadd --system {0}", owner.group())),
        }
    }

    /// The names of an owner, numbers where it has none.
    pub(crate) fn names(&self, user: u32, group: u32) -> String {
        let name = |of: &Names, number: u32| match of.names.get(&number) {
            Some(name) => name.clone(),
            None if number == 0 => ROOT.to_owned(),
            None => number.to_string(),
        };
        format!("{}:{}", name(&self.users, user), name(&self.groups, group))
    }
}

impl Names {
    /// The first and the third field of each line.
    fn read(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.split(':');
            let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) else { continue };
            // The first line of a name counts (getpwnam(3)), and that of a number (getpwuid(3)).
            let number = *found.numbers.entry(name.to_owned()).or_insert(number);
            let of_number = found.names.entry(number).or_insert_with(|| name.to_owned());
            // A second administrator in front of root takes no file away from it.
            if name == ROOT {
                ROOT.clone_into(of_number);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_files() {
        let accounts =
            Accounts::parse("root:x:0:0:root:/root:/bin/sh\netcd:x:104:1:\nbroken\n", "root:x:0:\netcd:x:109:\n");
        assert_eq!(accounts.numbers(&FileOwner::named("etcd")), Ok((104, 109)));
        assert_eq!((accounts.names(104, 109), accounts.names(7, 0)), ("etcd:etcd".to_owned(), "7:root".to_owned()));
        let unknown = accounts.numbers(&FileOwner::named("kube")).unwrap_err();
        assert!(unknown.contains("useradd --system --shell /usr/sbin/nologin kube"), "{unknown}");
        assert_eq!(Accounts::default().numbers(&FileOwner::root()), Ok((0, 0)));
    }

    #[test]
    fn of_several_names_of_a_number_root_is_meant_or_the_one_in_front() {
        let passwd = "admin:x:0:0:\nroot:x:0:0:\nzeta:x:7:7:\nalpha:x:7:7:\n";
        let accounts = Accounts::parse(passwd, "admins:x:0:\nroot:x:0:\nzeta:x:7:\nalpha:x:7:\n");
        assert_eq!(accounts.names(0, 0), "root:root");
        assert_eq!(accounts.names(7, 7), "zeta:zeta");
        assert_eq!(accounts.numbers(&FileOwner::named("alpha")), Ok((7, 7)));
    }
}
