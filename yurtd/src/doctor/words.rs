//! Figures and lists as people read them.

/// `3 d 4 h`, `12 min`, `5 s`: the two largest units.
pub(super) fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let Some(first) = UNITS.iter().position(|(unit, _)| seconds >= *unit) else { return "0 s".to_owned() };
    let (unit, name) = UNITS[first];
    let mut text = format!("{} {name}", seconds / unit);
    if let Some((next, name)) = UNITS.get(first + 1)
        && seconds % unit / next > 0
    {
        text.push_str(&format!(" {} {name}", seconds % unit / next));
    }
    text
}

/// `34.5 MiB`
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

/// `1 pod`, `2 pods`
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Columns as wide as what is in them; the last one ends as it ends.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!(" {cell:<width$} "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_two_largest_units() {
        let table = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3700, "1 h 1 min"),
            (3601, "1 h"),
            (90_061, "1 d 1 h"),
        ];
        for (seconds, expected) in table {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        for (bytes, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB")] {
            assert_eq!(size(bytes), expected);
        }
        assert_eq!((count(1, "pod"), count(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["NAME", "STATE"], ["ä", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "  NAME  STATE\n  ä     b\n");
        assert_eq!(table(&[]), "");
    }
}
