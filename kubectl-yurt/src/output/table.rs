//! Tables as kubectl prints them.

use super::{Console, Tone};

/// A table as kubectl prints them: upper-case headings, columns three spaces apart.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: Vec<Vec<(String, Option<Tone>)>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| ((*heading).to_owned(), None)).collect()] }
    }

    /// Adds a row; a cell is its text and its colour.
    pub fn row(&mut self, cells: Vec<(String, Option<Tone>)>) {
        self.rows.push(cells);
    }

    /// The table as text.
    pub fn render(&self, console: &Console) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|(text, _)| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, (cell, tone)) in row.iter().enumerate() {
                let painted = tone.map_or_else(|| cell.clone(), |tone| console.paint(tone, cell));
                text.push_str(&painted);
                if column + 1 < row.len() {
                    let pad = widths.get(column).copied().unwrap_or(0).saturating_sub(cell.chars().count());
                    text.push_str(&" ".repeat(pad + 3));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A cell without a colour.
pub fn plain(text: impl Into<String>) -> (String, Option<Tone>) {
    (text.into(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_one_is_not_padded() {
        let console =
            Console { stdout_color: true, stderr_color: false, interactive: false, progress: false };
        let mut table = Table::new(&["NODE", "STATE"]);
        table.row(vec![plain("edge-node"), ("ok".into(), Some(Tone::Good))]);
        assert_eq!(table.render(&console), "NODE        STATE\nedge-node   \u{1b}[32mok\u{1b}[0m\n");
    }
}
