//! Log lines as terminals may be shown them. The formatter escapes ASCII's control characters in what it logs; Unicode has more
//! of them, with which a request could recolour, reorder or forge lines in an operator's terminal.

use std::io::{self, Write};

/// A writer of whole lines to standard error.
pub(crate) fn stderr() -> Escaping<io::Stderr> {
    Escaping(io::stderr())
}

/// Writes text with the control characters beyond ASCII escaped.
pub(crate) struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match escaped(line) {
            Some(safe) => self.0.write_all(safe.as_bytes())?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The text with its dangerous characters escaped, if it has any.
fn escaped(line: &[u8]) -> Option<String> {
    if line.is_ascii() {
        return None;
    }
    let text = String::from_utf8_lossy(line);
    if !text.contains(is_dangerous) {
        return None;
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_dangerous(c) { safe.extend(c.escape_unicode()) } else { safe.push(c) }
    }
    Some(safe)
}

/// Controls of the second set, separators of lines, and what changes the direction of text.
fn is_dangerous(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_beyond_ascii_are_escaped_and_other_text_is_as_it_was() {
        let mut out = Vec::new();
        for line in ["plain\n", "ümlaut €\n", "a\u{9b}31mred\u{202e}\u{2028}b\n"] {
            Escaping(&mut out).write_all(line.as_bytes()).unwrap();
        }
        let expected = "plain\nümlaut €\na\\u{9b}31mred\\u{202e}\\u{2028}b\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
