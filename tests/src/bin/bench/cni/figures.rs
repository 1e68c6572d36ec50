//! The figures of a chain over all rounds, and their tables.
//!
//! Invariant: a total is the median of the rounds' totals; a call's median and p99 are taken over the calls of all rounds.

use std::time::Duration;

use super::inside::{Block, Calls, share};
use crate::report::{Report, ms, times};
use crate::samples::{Samples, milliseconds};

/// ADD and DEL of one chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    verbs: [Verb; 2],
}

#[derive(Debug, Clone, Default)]
struct Verb {
    calls: Samples,
    totals: Samples,
    settled: Samples,
    processor: Duration,
    busy: usize,
}

impl Figures {
    /// Adds a round.
    pub(crate) fn take(&mut self, blocks: [Block; 2]) {
        for (verb, block) in self.verbs.iter_mut().zip(blocks) {
            verb.calls.extend(&block.calls);
            verb.totals.push(block.total);
            verb.settled.push(block.settled);
            verb.processor += block.processor;
            verb.busy += usize::from(block.busy);
        }
    }
}

/// The table of ADD and the table of DEL. The first chain is the floor.
pub(crate) fn report(
    report: &Report,
    titles: &[&str],
    figures: &[Figures],
    (pods, rounds): (usize, usize),
    at_once: usize,
) {
    let how = if at_once == 1 { "one after another".to_owned() } else { format!("{at_once} at a time") };
    for (index, name) in ["ADD", "DEL"].into_iter().enumerate() {
        let verbs: Vec<&Verb> = figures.iter().filter_map(|figures| figures.verbs.get(index)).collect();
        let Some(floor) = verbs.first() else { continue };
        report.section(&format!("{name} of {pods} Pods, {how} ({rounds} rounds; milliseconds)"));
        let rows: Vec<Vec<String>> = titles.iter().zip(&verbs).map(|(title, verb)| row(title, verb, floor)).collect();
        let head = ["chain", "median", "p99", "total", "total, least–most", "settled", "processor/call", "total/floor"];
        report.table(&head, &rows);
        let busy: usize = verbs.iter().map(|verb| verb.busy).sum();
        if busy > 0 {
            report.text(&format!("{busy} of {} blocks began on a busy machine.", verbs.len() * rounds));
        }
    }
}

fn row(title: &str, verb: &Verb, floor: &Verb) -> Vec<String> {
    vec![
        title.to_owned(),
        ms(verb.calls.median()),
        ms(verb.calls.p99()),
        ms(verb.totals.median()),
        format!("{}–{}", ms(verb.totals.least()), ms(verb.totals.most())),
        ms(verb.settled.median()),
        ms(milliseconds(share(verb.processor, verb.calls.len()))),
        times(verb.totals.median(), floor.totals.median()),
    ]
}

/// Calls in one stretch of the growth's table.
const STRETCH: usize = 20;

/// ADD at the beginning, where a node of 110 Pods ends, and at the end of a node that is full.
pub(crate) fn report_growth(report: &Report, titles: &[&str], adds: &[Vec<Samples>], pods: usize) {
    report
        .section(&format!("ADD while {pods} Pods come, one after another (medians of {STRETCH} calls; milliseconds)"));
    let places = [("first", 0), ("up to Pod 110", 110 - STRETCH), ("last", pods.saturating_sub(STRETCH))];
    let row = |(title, rounds): (&&str, &Vec<Samples>)| {
        let mut medians = Vec::new();
        for (_, first) in places {
            let mut stretch = Samples::default();
            rounds.iter().for_each(|adds| stretch.extend(&adds.part(first, STRETCH)));
            medians.push(stretch.median());
        }
        let growth = times(medians.last().copied().unwrap_or(0.0), medians.first().copied().unwrap_or(0.0));
        [vec![(*title).to_owned()], medians.into_iter().map(ms).collect(), vec![growth]].concat()
    };
    let rows: Vec<Vec<String>> = titles.iter().zip(adds).map(row).collect();
    let heads = places.map(|(name, _)| name);
    report.table(&[&["chain"], &heads[..], &["last/first"]].concat(), &rows);
}

/// The cost of starting a program that answers VERSION or STATUS.
pub(crate) fn report_starts(report: &Report, programs: &[String], samples: &[Samples]) {
    report.section("Bare start: VERSION of each program, and STATUS of ours, in turn (milliseconds)");
    let floor = samples.first().map_or(0.0, Samples::median);
    let row = |(program, samples): (&String, &Samples)| {
        vec![program.clone(), ms(samples.median()), ms(samples.p99()), times(samples.median(), floor)]
    };
    let rows: Vec<Vec<String>> = programs.iter().zip(samples).map(row).collect();
    report.table(&["program", "median", "p99", "median/floor"], &rows);
}

/// System calls, executions and memory, which no noise changes.
pub(crate) fn report_calls(report: &Report, chains: &[(&str, [Calls; 2])]) {
    report.section("System calls, executed programs (strace -f) and most resident memory in KiB (time) of one call");
    let cell = |calls: &Calls| {
        [calls.system_calls, calls.executions, calls.most_resident].map(|number| number.to_string()).to_vec()
    };
    let row = |(title, calls): &(&str, [Calls; 2])| {
        [vec![(*title).to_owned()], calls.iter().flat_map(cell).collect()].concat()
    };
    let rows: Vec<Vec<String>> = chains.iter().map(row).collect();
    report.table(&["chain", "ADD", "executed", "memory", "DEL", "executed", "memory"], &rows);
}
