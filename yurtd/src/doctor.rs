//! `yurtd doctor`: how the node fares, for root who stands at it.
//!
//! ```text
//! desk (in `yurtd edge`: hub, tunnel, keeper's journal) ──socket──► ask ──► attention (verdicts) ──► print
//! ```
//!
//! A process of its own that asks the running one: the store has one owner. Where there is nobody to ask, it says so,
//! and what can be seen from outside.

mod ask;
mod attention;
pub(crate) mod desk;
mod print;
mod words;

use std::io::Write;
use std::process::ExitCode;

use yurt_api::doctor::Report;

use crate::cli::{DoctorArgs, Output};

/// Asks, judges and prints.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let mut report = ask::report(&args.runtime_dir, &args.state_dir);
    report.attention = attention::attention(&report);
    let text = match args.output {
        Output::Text => print::text(&report),
        Output::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => text + "\n",
            Err(error) => {
                eprintln!("error: the report cannot be written: {error}");
                return ExitCode::from(2);
            }
        },
    };
    // A pager that was closed is no failure of the node.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(verdict(&report))
}

/// 0: all is well; 1: something needs attention; 2: the hub cannot be asked.
fn verdict(report: &Report) -> u8 {
    match (&report.hub, report.attention.is_empty()) {
        (None, _) => 2,
        (Some(_), false) => 1,
        (Some(_), true) => 0,
    }
}

#[cfg(test)]
mod tests {
    use yurt_api::doctor::{Attention, Hub};

    use super::*;

    #[test]
    fn the_exit_code_is_the_verdict() {
        let hub = Some(Hub::default());
        let attention = vec![Attention::default()];
        assert_eq!(verdict(&Report::default()), 2);
        assert_eq!(verdict(&Report { attention: attention.clone(), ..Report::default() }), 2);
        assert_eq!(verdict(&Report { hub: hub.clone(), attention, ..Report::default() }), 1);
        assert_eq!(verdict(&Report { hub, ..Report::default() }), 0);
    }
}
