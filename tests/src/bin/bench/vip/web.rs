//! wrk(1) against nginx: requests on connections that stay, and a connection for each request.
//!
//! Invariant: wrk ends by itself after its time; a request that fails fails the benchmark.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::Pod;

use super::Way;
use crate::machine;
use crate::report::Report;

/// What one run of wrk gave.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    /// Requests a second.
    rate: f64,
    /// Milliseconds within which half and 99 of hundred were answered.
    half: f64,
    most: f64,
}

/// The runs of each row: with connections that stay, and with one for each request.
#[derive(Debug, Default)]
pub(super) struct Web(Vec<(String, Vec<[Run; 2]>)>);

impl Web {
    /// Measures row `index` once.
    pub(super) fn measure(&mut self, index: usize, label: &str, from: &Pod, to: SocketAddr) -> Result<()> {
        while self.0.len() <= index {
            self.0.push(Default::default());
        }
        let runs = [wrk(from, to, &[])?, wrk(from, to, &["-H", "Connection: close"])?];
        let row = self.0.get_mut(index).context("no row")?;
        label.clone_into(&mut row.0);
        row.1.push(runs);
        Ok(())
    }

    /// Each row is compared with the first of its number of Services.
    pub(super) fn print(&self, report: &Report) {
        let head = [
            "path",
            "requests/s",
            "of direct",
            "median, ms",
            "p99, ms",
            "connections/s",
            "of direct",
            "median, ms",
            "p99, ms",
        ];
        let line = |(index, (label, own)): (usize, &(String, Vec<[Run; 2]>))| {
            let base = self.0.get(index - index % Way::ALL.len()).map_or(own, |(_, base)| base);
            let mut cells = vec![label.clone()];
            for kind in 0..2 {
                let of = |runs: &[[Run; 2]], value: fn(&Run) -> f64| {
                    middle(runs.iter().filter_map(|runs| runs.get(kind)).map(value).collect())
                };
                let quotients =
                    own.iter().zip(base).filter_map(|(own, base)| Some(own.get(kind)?.rate / base.get(kind)?.rate));
                cells.push(format!("{:.0}", of(own, |run| run.rate)));
                cells.push(format!("{:.2}", middle(quotients.collect())));
                cells.push(format!("{:.2}", of(own, |run| run.half)));
                cells.push(format!("{:.2}", of(own, |run| run.most)));
            }
            cells
        };
        report.table(&head, &self.0.iter().enumerate().map(line).collect::<Vec<_>>());
    }
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn wrk(from: &Pod, to: SocketAddr, more: &[&str]) -> Result<Run> {
    let (time, url) = (if machine::is_rehearsal() { "-d1s" } else { "-d3s" }, format!("http://{to}/"));
    let args = ["-t1", "-c16", time, "--timeout", "20s", "--latency"];
    let text = from.command("wrk").args(args).args(more).arg(&url).run()?.stdout;
    let failed = ["Socket errors", "Non-2xx"].iter().any(|words| text.contains(words));
    ensure!(!failed, "requests to {to} failed: {text}");
    read(&text).with_context(|| format!("wrk said {text:?}"))
}

/// Reads what wrk prints.
fn read(text: &str) -> Option<Run> {
    let behind = |word: &str| text.lines().find_map(|line| line.trim().strip_prefix(word)).map(str::trim);
    Some(Run {
        rate: behind("Requests/sec:")?.parse().ok()?,
        half: milliseconds(behind("50%")?)?,
        most: milliseconds(behind("99%")?)?,
    })
}

/// A time as wrk prints it: `123.45us`, `1.23ms` or `1.20s`.
fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Some(number.parse::<f64>().ok()? * factor);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "Running 1s test @ http://172.7.22.2:8080/\n  1 threads and 16 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
            Latency   312.17us  120.33us   3.70ms   86.53%\n    Req/Sec    50.65k     2.22k   53.31k    90.00%\n  Latency Distribution\n     \
            50%  290.00us\n     75%  350.00us\n     90%  410.00us\n     99%    1.02ms\n  50399 requests in 1.00s, 7.93MB read\n\
            Requests/sec:  50312.44\nTransfer/sec:      7.92MB\n";
        assert_eq!(read(text), Some(Run { rate: 50_312.44, half: 0.29, most: 1.02 }));
        assert_eq!(milliseconds("1.50s"), Some(1500.0));
        assert_eq!(read("unable to connect"), None);
    }
}
