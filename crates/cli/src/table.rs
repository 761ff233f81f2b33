//! Tables for people: columns as wide as their widest cell, three blanks between them, as kubectl prints.

/// Prints headings and rows to stdout.
pub(crate) fn print(headings: &[&str], rows: &[Vec<String>]) {
    print!("{}", render(headings, rows));
}

/// The text of a table.
pub(crate) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(rows) {
        let line: Vec<String> =
            widths.iter().zip(row).map(|(w, cell)| format!("{:<w$}", printable(cell), w = *w)).collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// A text without what a terminal would obey: cells come from images and objects of strangers.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A size as people read it.
pub(crate) fn bytes(n: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["a".to_owned(), "long cell".to_owned(), "x".to_owned()],
            vec!["bbb".into(), String::new(), "y".into()],
        ];
        assert_eq!(
            render(&["N", "M", "O"], &rows),
            "N     M           O\na     long cell   x\nbbb               y\n"
        );
        assert_eq!(render(&["N"], &[vec!["\u{1b}[2J".to_owned()]]), "N\n [2J\n");
    }

    #[test]
    fn sizes() {
        for (n, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_415_784, "1.4 MB"), (5_000_000_000, "5.0 GB")]
        {
            assert_eq!(bytes(n), text);
        }
    }
}
