//! `Tag`: whose an nft element is, written into the element's comment.
//!
//! ```text
//! vethgn5ac9sfczt cbr0 web-1@eth0     the Pod's link here is ours and has this name
//! portgn5ac9sfczt cbr0 web-1@eth0     another plugin made the Pod's link; its life cannot be seen from here
//! ```
//! Invariant: the digits of the first word and the network name one attachment, and DEL makes them again from the
//! container, the interface and the network alone. The rest is for who reads the ruleset.

use netstate::IfName;
use netstate::nft::Element;
use sha2::{Digest, Sha256};

use crate::protocol::attachment::Attachment;

/// Comments of elements hold at most this many bytes, of the 128 that the nft tool can show.
const COMMENT_MAX: usize = 120;

/// Names of networks up to this length, in bytes, are written as they are.
const NETWORK_MAX: usize = 40;

/// An attachment to a network, as the holder of nft elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Which interface of which container.
    pub attachment: Attachment,
    /// The network's name.
    pub network: String,
    /// The Pod's link on this host is the one that we give the attachment: when it is gone, so is the Pod.
    pub has_own_link: bool,
}

impl Tag {
    /// The tag of what `attachment` to `network` has, whose link here is the one that we make.
    #[must_use]
    pub(crate) fn own(network: &str, attachment: &Attachment) -> Self {
        Self { attachment: attachment.clone(), network: network.to_owned(), has_own_link: true }
    }

    /// The comment of the attachment's elements.
    #[must_use]
    pub(crate) fn comment(&self) -> String {
        let word = if self.has_own_link { OWN } else { CHAINED };
        let Attachment { container, ifname, .. } = &self.attachment;
        let (digits, network) = (self.digits(), network_word(&self.network));
        let mut text = format!("{word}{digits} {network} {container}@{ifname}");
        text.truncate(text.floor_char_boundary(COMMENT_MAX));
        text
    }

    /// True when `element` belongs to the attachment.
    #[must_use]
    pub(crate) fn owns(&self, element: &Element) -> bool {
        ObservedTag::of(element)
            .is_some_and(|holder| holder.digits == self.digits() && holder.network == network_word(&self.network))
    }

    fn digits(&self) -> String {
        digits(self.attachment.host_link()).to_owned()
    }
}

const OWN: &str = "veth";
const CHAINED: &str = "port";

/// The part of a host end's name that is the attachment's.
fn digits(link: &IfName) -> &str {
    link.as_str().strip_prefix(OWN).unwrap_or(link.as_str())
}

/// A network's name as one word that no other network has: long names end in a hash.
#[must_use]
pub(crate) fn network_word(network: &str) -> String {
    if network.len() <= NETWORK_MAX {
        return network.to_owned();
    }
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(network.as_bytes()).into();
    let head = network.get(..network.floor_char_boundary(NETWORK_MAX - 9)).unwrap_or_default();
    // No name of a network has a `~`.
    format!("{head}~{:08x}", u32::from_be_bytes([a, b, c, d]))
}

/// What an element's comment says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedTag {
    word: &'static str,
    digits: String,
    /// See [`network_word`].
    network: String,
    name: String,
}

impl ObservedTag {
    /// Reads `element`'s comment; `None` when it is none of ours.
    #[must_use]
    pub(crate) fn of(element: &Element) -> Option<Self> {
        Self::read(element.comment.as_deref()?)
    }

    /// Reads a comment.
    #[must_use]
    pub(crate) fn read(comment: &str) -> Option<Self> {
        let mut words = comment.splitn(3, ' ');
        let (link, network, name) = (words.next()?, words.next()?, words.next().unwrap_or_default());
        let word = [OWN, CHAINED].into_iter().find(|word| link.starts_with(word))?;
        let digits = link.get(word.len()..).filter(|digits| !digits.is_empty())?.to_owned();
        Some(Self { word, digits, network: network.to_owned(), name: name.to_owned() })
    }

    /// True when the holder is of `network`.
    #[must_use]
    pub(crate) fn is_of(&self, network: &str) -> bool {
        self.network == network_word(network)
    }

    /// True when the holder is one of `attachments`.
    #[must_use]
    pub(crate) fn is_among(&self, attachments: &[Attachment]) -> bool {
        attachments.iter().any(|attachment| digits(attachment.host_link()) == self.digits)
    }

    /// The container, unless its name is too long to stand there whole.
    fn container(&self) -> Option<&str> {
        self.name.rsplit_once('@').map(|(container, _)| container)
    }

    /// True when both are of one container: of several networks with the same host ports the last one that it is attached to has them.
    #[must_use]
    pub(crate) fn shares_container(&self, other: &Self) -> bool {
        self.container().is_some() && self.container() == other.container()
    }

    /// True when both are the same attachment.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.digits, &self.network) == (&other.digits, &other.network)
    }

    /// The link whose absence says that the holder is gone; `None` when no link says that.
    #[must_use]
    pub(crate) fn link(&self) -> Option<IfName> {
        (self.word == OWN).then(|| IfName::new(format!("{OWN}{}", self.digits)).ok()).flatten()
    }
}

impl std::fmt::Display for ObservedTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { word, digits, network, name } = self;
        write!(f, "{name} of network {network} ({word}{digits})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::ContainerId;

    fn owner(container: &str, network: &str) -> Tag {
        let attachment = Attachment::new(ContainerId::new(container).unwrap(), IfName::new("eth0").unwrap());
        Tag { attachment, network: network.to_owned(), has_own_link: true }
    }

    fn element(owner: &Tag) -> Element {
        Element::member().comment(owner.comment())
    }

    #[test]
    fn comment_of_a_release_never_changes() {
        // A node upgraded with Pods running finds their ports by it.
        let own = owner("web-1", "cbr0");
        assert_eq!(own.comment(), "vethgn5ac9sfczt cbr0 web-1@eth0");
        let chained = Tag { has_own_link: false, ..own };
        assert_eq!(chained.comment(), "portgn5ac9sfczt cbr0 web-1@eth0");
    }

    #[test]
    fn elements_know_their_owner_and_network_however_long_the_names() {
        let long = "n".repeat(200);
        let owners = [
            owner("web-1", "cbr0"),
            owner("web-2", "cbr0"),
            owner("web-1", "other"),
            owner(&"x".repeat(300), &long),
            owner(&"x".repeat(300), &format!("{long}n")),
        ];
        for (at, one) in owners.iter().enumerate() {
            let comment = one.comment();
            assert!(comment.len() <= 128, "{comment}");
            for (other_at, other) in owners.iter().enumerate() {
                assert_eq!(other.owns(&element(one)), at == other_at, "{comment}");
            }
            let holder = ObservedTag::of(&element(one)).unwrap();
            assert!(holder.is_of(&one.network) && !holder.is_of("third"));
            assert_eq!(holder.link().as_ref(), Some(one.attachment.host_link()));
            assert!(holder.is_among(std::slice::from_ref(&one.attachment)) && !holder.is_among(&[]));
        }
    }

    #[test]
    fn attachments_of_one_container_know_each_other() {
        let (one, other) = (owner("web-1", "cbr0"), owner("web-1", "storage"));
        let observed = |tag: &Tag| ObservedTag::of(&element(tag)).unwrap();
        assert!(observed(&one).shares_container(&observed(&other)) && !one.owns(&element(&other)));
        assert!(!observed(&one).shares_container(&observed(&owner("web-11", "cbr0"))));
        // What is cut off says nothing.
        let long = owner(&"x".repeat(300), "cbr0");
        assert!(!observed(&long).shares_container(&observed(&long)));
    }

    #[test]
    fn life_of_a_chained_owner_is_shown_by_no_link() {
        let chained = Tag { has_own_link: false, ..owner("web-1", "cbr0") };
        assert_eq!(ObservedTag::of(&element(&chained)).unwrap().link(), None);
        assert!(owner("web-1", "cbr0").owns(&element(&chained)), "DEL does not know how ADD came by the link");
    }

    #[test]
    fn foreign_comments_are_nobodys() {
        for comment in ["", "veth", "veth cbr0", "mine", "nat cbr0 x"] {
            assert_eq!(ObservedTag::read(comment), None, "{comment:?}");
        }
    }
}
