//! What the tool prints: Markdown, on standard output.

use std::io::Write;
use std::time::Duration;

/// Writes a line; a closed pipe is no reason to fail.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Says on standard error what is under way, so that the tables alone reach a file.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "… {text}");
}

/// A table that is printed when it is complete.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(title: &str, columns: &[&str]) -> Table {
        let head = columns.iter().map(|&column| column.to_owned()).collect();
        Table { title: title.to_owned(), rows: vec![head], notes: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// A remark under the table.
    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    pub(crate) fn print(&self) {
        line(&self.render());
    }

    fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|at| self.rows.iter().map(|row| cell(row, at).chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let mut text = format!("\n### {}\n\n", self.title);
        for (i, row) in self.rows.iter().enumerate() {
            for (at, width) in widths.iter().enumerate() {
                let content = cell(row, at);
                // The first column names the row, the others are numbers.
                match at {
                    0 => text.push_str(&format!("| {content:<width$} ")),
                    _ => text.push_str(&format!("| {content:>width$} ")),
                }
            }
            text.push_str("|\n");
            if i == 0 {
                for (at, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    text.push_str(&if at == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") });
                }
                text.push_str("|\n");
            }
        }
        for note in &self.notes {
            text.push_str(&format!("\n{note}\n"));
        }
        text
    }
}

/// A duration in the unit that suits it.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// A rate or a count, with spaces between thousands.
pub(crate) fn number(value: f64) -> String {
    match value {
        v if v.fract() == 0.0 || v >= 100.0 => {}
        v if v < 10.0 => return format!("{v:.2}"),
        v => return format!("{v:.1}"),
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Bytes in KiB, one digit exact.
pub(crate) fn kib(bytes: f64) -> String {
    format!("{:.1} KiB", bytes / 1024.0)
}

/// Bytes in MiB, one digit exact.
pub(crate) fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / 1024.0 / 1024.0)
}

/// One figure as a multiple of another.
pub(crate) fn ratio(value: f64, base: f64) -> String {
    match base > 0.0 && value > 0.0 {
        true => format!("{:.2}×", value / base),
        false => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(number(1_234_567.4), "1 234 567");
        assert_eq!(number(999.0), "999");
        assert_eq!(number(1.25), "1.25");
        assert_eq!(number(12.54), "12.5");
        assert_eq!(time(Duration::from_micros(12)), "12 µs");
        assert_eq!(time(Duration::from_millis(12)), "12.00 ms");
        assert_eq!(ratio(1.0, 2.0), "0.50×");
        assert_eq!(ratio(1.0, 0.0), "–");
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("T", &["name", "n"]);
        table.row(["a".into(), "1".into()]);
        assert_eq!(table.render(), "\n### T\n\n| name |   n |\n|------|----:|\n| a    |   1 |\n");
    }
}
