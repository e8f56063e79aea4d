//! Progress on stderr: on a terminal a line for each node at work, with its step, and one total; elsewhere a plain
//! line for each change.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Console, Tone, words::human};

/// Progress of one piece of work on several nodes.
pub struct Progress {
    console: Console,
    started: Instant,
    verb: &'static str,
    done: usize,
    all: usize,
    /// What was printed last for a node, so that lines do not repeat.
    last: HashMap<String, String>,
    bars: Option<Bars>,
}

struct Bars {
    multi: MultiProgress,
    total: ProgressBar,
    nodes: HashMap<String, ProgressBar>,
}

impl Progress {
    /// Starts showing work on `all` nodes; `verb` is what happened to those that are done.
    pub fn start(console: Console, verb: &'static str, all: usize) -> Self {
        let bars = console.progress.then(|| {
            let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            let total = multi.add(spinner("{spinner} {msg} ({elapsed})"));
            Bars { multi, total, nodes: HashMap::new() }
        });
        let progress =
            Self { console, started: Instant::now(), verb, done: 0, all, last: HashMap::new(), bars };
        progress.total();
        progress
    }

    /// What is being waited for before any node is touched.
    pub fn phase(&mut self, text: &str) {
        let changed = self.changed("", text);
        match &self.bars {
            Some(bars) => bars.total.set_message(text.to_owned()),
            None if changed => self.console.note(text),
            None => {}
        }
    }

    /// A node is at `text`.
    pub fn step(&mut self, node: &str, text: &str) {
        if !self.changed(node, text) {
            return;
        }
        match &mut self.bars {
            Some(bars) => {
                let bar = bars.nodes.entry(node.to_owned()).or_insert_with(|| {
                    bars.multi.insert_before(&bars.total, spinner("{spinner} {prefix}  {msg}"))
                });
                bar.set_prefix(node.to_owned());
                bar.set_message(text.to_owned());
            }
            None => self.console.note(format!("{node}: {text}")),
        }
        self.total();
    }

    /// A node is done.
    pub fn done(&mut self, node: &str, text: &str) {
        self.done += 1;
        let mark = self.console.paint_stderr(Tone::Good, "✓");
        self.finish(node, &mark, text);
    }

    /// A node is not done and will not be.
    pub fn failed(&mut self, node: &str, text: &str) {
        let mark = self.console.paint_stderr(Tone::Bad, "✗");
        self.finish(node, &mark, text);
    }

    /// `in 1m3s`: how long the work has taken.
    pub fn took(&self) -> String {
        format!("in {}", human(self.started.elapsed()))
    }

    /// Takes the lines that redraw themselves away, before a result is printed where they are.
    pub fn clear(&mut self) {
        if let Some(bars) = self.bars.take() {
            for bar in bars.nodes.values() {
                bar.finish_and_clear();
            }
            bars.total.finish_and_clear();
        }
    }

    fn finish(&mut self, node: &str, mark: &str, text: &str) {
        match &mut self.bars {
            Some(bars) => {
                if let Some(bar) = bars.nodes.remove(node) {
                    bar.finish_and_clear();
                    bars.multi.remove(&bar);
                }
                let _ = bars.multi.println(format!("{mark} {node}  {text}"));
            }
            None => self.console.note(format!("{node}: {text}")),
        }
        self.total();
    }

    fn total(&self) {
        if let Some(bars) = &self.bars {
            bars.total.set_message(format!("{} of {} nodes {}", self.done, self.all, self.verb));
        }
    }

    fn changed(&mut self, node: &str, text: &str) -> bool {
        let last = self.last.insert(node.to_owned(), text.to_owned());
        last.as_deref() != Some(text)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner(template: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
