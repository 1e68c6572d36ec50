//! resolv.conf as host-local reads it (plugins/ipam/host-local/dns.go): settings for the result, nothing is changed.

use crate::protocol::result::Dns;

/// The settings in `text`: `nameserver`, `domain` (the last one counts), `search` and `options` lines; everything else
/// is passed over, as the C library does.
#[must_use]
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (key, rest) = (words.next(), words.map(str::to_owned));
        match key {
            Some("nameserver") => dns.nameservers.extend(rest.take(1)),
            Some("domain") => rest.take(1).for_each(|domain| dns.domain = domain),
            Some("search") => dns.search.extend(rest),
            Some("options") => dns.options.extend(rest),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_host_local_reads_them() {
        let dns = parse(
            "# c\n; c\nnameserver 192.168.0.2\n nameserver 10.4.7.11 \ndomain a\ndomain cluster.local\nsearch svc.cluster.local cluster.local\noptions ndots:5 rotate\nsortlist x\nnameserver\n",
        );
        assert_eq!(dns.nameservers, ["192.168.0.2", "10.4.7.11"]);
        assert_eq!(dns.domain, "cluster.local");
        assert_eq!(dns.search, ["svc.cluster.local", "cluster.local"]);
        assert_eq!(dns.options, ["ndots:5", "rotate"]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn the_references_cases_parse_as_there() {
        let all = parse(
            "nameserver 192.0.2.0\nnameserver 192.0.2.1\ndomain example.com\nsearch example.net example.org\noptions four score and seven\n",
        );
        assert_eq!(all.nameservers, ["192.0.2.0", "192.0.2.1"]);
        assert_eq!((all.domain.as_str(), all.search.len()), ("example.com", 2));
        assert_eq!(all.options, ["four", "score", "and", "seven"]);
        let commented = parse("nameserver 192.0.2.0\n;nameserver 192.0.2.1\n# nameserver 192.0.2.2\n");
        assert_eq!(commented.nameservers, ["192.0.2.0"]);
    }
}
