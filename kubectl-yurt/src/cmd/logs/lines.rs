//! Putting prefixes in front of a log's lines, and keeping lines of several logs apart. Pure.

/// A line that is longer than this is passed on in parts: memory must not depend on what a container writes.
const LONGEST: usize = 256 * 1024;

/// The lines of one log.
#[derive(Debug)]
pub struct Lines {
    prefix: Vec<u8>,
    at_start: bool,
    pending: Vec<u8>,
}

impl Lines {
    /// Lines with this in front of each.
    pub fn new(prefix: Option<String>) -> Self {
        Self { prefix: prefix.unwrap_or_default().into_bytes(), at_start: true, pending: Vec::new() }
    }

    /// The piece with prefixes, at once: for a log that has stdout for itself.
    pub fn passing(&mut self, piece: &[u8]) -> Vec<u8> {
        if self.prefix.is_empty() {
            return piece.to_vec();
        }
        let mut text = Vec::with_capacity(piece.len() + self.prefix.len());
        for line in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.at_start {
                text.extend_from_slice(&self.prefix);
            }
            text.extend_from_slice(line);
            self.at_start = line.ends_with(b"\n");
        }
        text
    }

    /// The whole lines up to here; what is left of the last one waits for its end.
    pub fn whole(&mut self, piece: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(piece);
        let end = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.pending.len() >= LONGEST => self.pending.len(),
            None => return Vec::new(),
        };
        let ready: Vec<u8> = self.pending.drain(..end).collect();
        self.passing(&ready)
    }

    /// What is left at the end of the log, as a whole line.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.pending);
        if rest.is_empty() {
            return rest;
        }
        rest.push(b'\n');
        self.passing(&rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_stands_once_in_front_of_each_line_however_it_arrives() {
        let mut lines = Lines::new(Some("[p] ".into()));
        let mut text = Vec::new();
        for piece in ["one\ntw", "o\n", "three"] {
            text.extend(lines.passing(piece.as_bytes()));
        }
        assert_eq!(text, b"[p] one\n[p] two\n[p] three");
    }

    #[test]
    fn without_a_prefix_bytes_pass_unchanged() {
        let mut lines = Lines::new(None);
        assert_eq!(lines.passing(b"\xff\n\x00"), b"\xff\n\x00");
    }

    #[test]
    fn only_whole_lines_are_mixed_with_others() {
        let mut lines = Lines::new(Some("> ".into()));
        assert_eq!(lines.whole(b"one\ntw"), b"> one\n");
        assert_eq!(lines.whole(b"o"), b"");
        assert_eq!(lines.rest(), b"> two\n");
        assert_eq!(lines.rest(), b"");
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let mut lines = Lines::new(None);
        let piece = vec![b'x'; LONGEST];
        assert_eq!(lines.whole(&piece).len(), LONGEST);
        assert!(lines.pending.is_empty());
    }
}
