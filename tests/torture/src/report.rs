//! What came of it, as figures and as the list of all that was wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Faults that are told one by one.
const TOLD: usize = 60;

/// The sums of one comparison, by the names that the clients give them.
const FAULTS: [&str; 7] = ["lost", "doubled", "disordered", "wrong", "unexplained", "skipped", "mistyped"];
/// Those of them that are counted alone, if it is said so.
const LENIENT: [&str; 2] = ["skipped", "mistyped"];

/// The report.
#[derive(Debug, Default)]
pub(crate) struct Report {
    seed: u64,
    lenient: bool,
    pub(crate) kills: u32,
    pub(crate) patches: u64,
    pub(crate) stores: u32,
    pub(crate) faults_inflicted: u32,
    pub(crate) writes: u64,
    pub(crate) recoveries: Vec<Duration>,
    pub(crate) recoveries_of_damaged: Vec<Duration>,
    set_aside: u32,
    ends_of_damaged: BTreeMap<String, u32>,
    lists: u64,
    objects: u64,
    refused: u64,
    sums: BTreeMap<&'static str, u64>,
    faults: Vec<String>,
    more: usize,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(seed: u64, lenient: bool) -> Self {
        Self { seed, lenient, ..Self::default() }
    }

    /// Something that must not be.
    pub(crate) fn fault(&mut self, text: String) {
        println!("torture: FAULT: {text}");
        if self.faults.len() < TOLD {
            self.faults.push(text);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// Lists that were compared with the API server's.
    pub(crate) fn checked(&mut self, when: &str, answer: &Value) {
        self.checked_but(when, answer, "\0");
    }

    /// The same, where one object differs for a reason.
    pub(crate) fn checked_but(&mut self, when: &str, answer: &Value, object: &str) {
        let number = |name: &str| answer[name].as_u64().unwrap_or_default();
        self.lists += number("lists");
        self.objects += number("objects");
        self.refused += number("refused");
        for fault in answer["faults"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if fault.contains(": 1 differences") && fault.contains(object) {
                continue;
            }
            self.fault(format!("{when}: {fault}"));
        }
    }

    /// A start with a damaged store.
    pub(crate) fn damaged(&mut self, what: &str, ends: &[String], set_aside: bool) {
        self.set_aside += u32::from(set_aside);
        for end in ends {
            *self.ends_of_damaged.entry(end.clone()).or_default() += 1;
            if end.starts_with("signal") {
                self.notes.push(format!("{what}: {end}"));
            }
        }
    }

    /// What clients heard.
    pub(crate) fn compared(&mut self, answer: &Value) {
        for pair in answer["pairs"].as_array().into_iter().flatten() {
            let name = pair["name"].as_str().unwrap_or_default();
            let number = |what: &str| pair[what].as_u64().unwrap_or_default();
            for what in ["direct", "hub", "folded", "torn", "watches", "relists"].into_iter().chain(FAULTS) {
                *self.sums.entry(what).or_default() += number(what);
            }
            let line =
                FAULTS.iter().map(|what| format!("{} {what}", number(what))).collect::<Vec<_>>().join(", ");
            let examples: Vec<&str> =
                pair["examples"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let wrong =
                FAULTS.iter().any(|what| number(what) > 0 && !(self.lenient && LENIENT.contains(what)));
            let text = format!(
                "{name}: {} events of {}, {line}\n      {}",
                number("hub"),
                number("direct"),
                examples.join("\n      ")
            );
            if wrong {
                self.fault(text);
            } else if !examples.is_empty() {
                self.notes.push(text);
            }
        }
    }

    /// What the hub's log must not have.
    pub(crate) fn logs(&mut self, log: &str) {
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked at")).collect();
        if let Some(first) = panics.first() {
            self.fault(format!("the hub panicked {} times: {first}", panics.len()));
        }
    }
}

/// The value that so many of a hundred are not above.
fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nseed {}", self.seed)?;
        let times = |values: &[Duration]| {
            let (half, most) = (percentile(values, 50), percentile(values, 99));
            format!("p50 {} ms, p99 {} ms", half.as_millis(), most.as_millis())
        };
        writeln!(
            f,
            "kills                 {}, killed → first list: {}",
            self.kills,
            times(&self.recoveries)
        )?;
        writeln!(f, "status patches        {} acknowledged without a link", self.patches)?;
        writeln!(
            f,
            "damaged stores        {}, {} set aside, started → first list: {}; ends by themselves: {:?}",
            self.stores,
            self.set_aside,
            times(&self.recoveries_of_damaged),
            self.ends_of_damaged
        )?;
        writeln!(
            f,
            "lists                 {} exactly the API server's at their version ({} objects), {} refused honestly",
            self.lists, self.objects, self.refused
        )?;
        let sum = |what: &str| self.sums.get(what).copied().unwrap_or_default();
        writeln!(
            f,
            "compared              {} events through the hub with {} direct ones, {} writes, {} faults",
            sum("hub"),
            sum("direct"),
            self.writes,
            self.faults_inflicted
        )?;
        for what in FAULTS {
            writeln!(f, "  {what:<20}{}", sum(what))?;
        }
        writeln!(f, "  folded              {} (from before a watcher came back)", sum("folded"))?;
        writeln!(f, "  torn                {} (of a client cut off while it caught up)", sum("torn"))?;
        writeln!(f, "  watches, lists      {}, {}", sum("watches"), sum("relists"))?;
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        for fault in &self.faults {
            writeln!(f, "  FAULT: {fault}")?;
        }
        if self.more > 0 {
            writeln!(f, "  and {} more", self.more)?;
        }
        write!(f, "torture: {}", if self.passed() { "passed" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let values: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), Duration::from_millis(100));
        assert_eq!(percentile(&values, 99), Duration::from_millis(198));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn what_is_skipped_fails_unless_it_is_only_counted() {
        let answer = serde_json::json!({"pairs": [{"name": "Pods", "hub": 9, "direct": 10, "skipped": 1}]});
        let (mut strict, mut lenient) = (Report::new(1, false), Report::new(1, true));
        strict.compared(&answer);
        lenient.compared(&answer);
        assert_eq!((strict.passed(), lenient.passed()), (false, true));
        assert!(lenient.to_string().contains("skipped             1"));
        let lost = serde_json::json!({"pairs": [{"name": "Pods", "lost": 1}]});
        lenient.compared(&lost);
        assert!(!lenient.passed());
    }
}
