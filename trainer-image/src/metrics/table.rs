//! Aligns text in columns. Pure.

use std::fmt::Write as _;

/// Aligns rows in columns two spaces apart. The first `left` columns are left-aligned, the others right-aligned.
pub(super) fn columns(left: usize, rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let _ =
                if column < left { write!(line, "{gap}{cell:<width$}") } else { write!(line, "{gap}{cell:>width$}") };
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
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["ä".to_owned(), "12".to_owned()], vec!["bcd".to_owned(), "3".to_owned()], vec!["e".to_owned()]];
        assert_eq!(columns(1, &rows), "ä    12\nbcd   3\ne\n");
    }
}
