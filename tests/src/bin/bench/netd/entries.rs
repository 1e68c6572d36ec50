//! The entries that a node's kernel holds for its tunnel, and the batches that make the same ones elsewhere.
//!
//! Invariant: what iproute2 prints is what it takes, so a batch holds exactly the entries that were read.

use anyhow::Result;
use lab::Host;

/// Lines of `ip neigh`, `bridge fdb` and `ip route` for one device.
#[derive(Debug)]
pub(crate) struct Entries {
    device: String,
    neighbours: Vec<String>,
    forwarding: Vec<String>,
    routes: Vec<String>,
}

impl Entries {
    /// Reads them.
    ///
    /// # Errors
    /// When iproute2 fails.
    pub(crate) fn read(host: &Host, device: &str) -> Result<Self> {
        let lines = |words: &[&str]| -> Result<Vec<String>> {
            let printed = host.run(&[words, &["dev", device]].concat())?.stdout;
            Ok(printed.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
        };
        Ok(Self {
            device: device.to_owned(),
            neighbours: lines(&["ip", "-4", "neigh", "show", "nud", "permanent"])?,
            forwarding: lines(&["bridge", "fdb", "show"])?.into_iter().filter(|line| line.contains(" dst ")).collect(),
            routes: lines(&["ip", "-4", "route", "show"])?.into_iter().filter(|line| line.contains(" via ")).collect(),
        })
    }

    /// Numbers of neighbours, forwarding entries and routes.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [self.neighbours.len(), self.forwarding.len(), self.routes.len()]
    }

    /// Input of `ip -batch`.
    pub(crate) fn neighbours(&self) -> String {
        // Printed: ADDRESS lladdr MAC PERMANENT.
        self.batch("neigh replace", &self.neighbours, |line| line.replace("PERMANENT", "nud permanent"))
    }

    /// Input of `bridge -batch`.
    pub(crate) fn forwarding(&self) -> String {
        // Printed: MAC dst ADDRESS self permanent.
        self.batch("fdb replace", &self.forwarding, str::to_owned)
    }

    /// Input of `ip -batch`.
    pub(crate) fn routes(&self) -> String {
        self.batch("route replace", &self.routes, str::to_owned)
    }

    /// Input of `ip -batch` with the routes as flannel writes them.
    pub(crate) fn routes_of_one_metric(&self) -> String {
        self.batch("route replace", &self.routes, |line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = words.iter().position(|word| *word == "metric").map(|place| place + 1);
            let kept = words.iter().enumerate().filter(|(place, word)| **word != "metric" && Some(*place) != number);
            kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        })
    }

    fn batch(&self, verb: &str, lines: &[String], change: impl Fn(&str) -> String) -> String {
        lines.iter().map(|line| format!("{verb} {} dev {}\n", change(line), self.device)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_say_what_was_printed() {
        let entries = Entries {
            device: "flannel.1".to_owned(),
            neighbours: vec!["100.64.0.0 lladdr 02:00:00:00:00:00 PERMANENT".to_owned()],
            forwarding: vec!["02:00:00:00:00:00 dst 10.128.0.0 self permanent".to_owned()],
            routes: vec!["100.64.0.0/24 via 100.64.0.0 proto 242 metric 1005 onlink".to_owned()],
        };
        let wanted = "neigh replace 100.64.0.0 lladdr 02:00:00:00:00:00 nud permanent dev flannel.1\n";
        assert_eq!(entries.neighbours(), wanted);
        let wanted = "fdb replace 02:00:00:00:00:00 dst 10.128.0.0 self permanent dev flannel.1\n";
        assert_eq!(entries.forwarding(), wanted);
        let wanted = "route replace 100.64.0.0/24 via 100.64.0.0 proto 242 metric 1005 onlink dev flannel.1\n";
        assert_eq!(entries.routes(), wanted);
        let wanted = "route replace 100.64.0.0/24 via 100.64.0.0 proto 242 onlink dev flannel.1\n";
        assert_eq!(entries.routes_of_one_metric(), wanted);
    }
}
