//! Tables for people: aligned columns, numbers to the right.

use std::io::{self, Write};

/// Rows of text under a heading.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|word| (*word).to_string()).collect()] }
    }

    /// Adds a row with as many cells as the heading has.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(self.rows.first().map(Vec::len), Some(N), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// Writes the heading and the rows in their order.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns: Vec<Column> =
            (0..self.rows.first().map_or(0, Vec::len)).map(|index| self.column(index)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, column) in row.iter().zip(&columns) {
                let padding = " ".repeat(column.width - cell.chars().count());
                let (before, after) = if column.is_number {
                    (padding, String::new())
                } else {
                    (String::new(), padding)
                };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn column(&self, index: usize) -> Column {
        let cells = || self.rows.iter().filter_map(|row| row.get(index));
        let width = cells().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let is_number = |cell: &String| cell == "-" || cell.parse::<i64>().is_ok();
        Column { width, is_number: self.rows.len() > 1 && cells().skip(1).all(is_number) }
    }
}

struct Column {
    width: usize,
    is_number: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let mut table = Table::new(&["TOPIC", "PARTITIONS", "NOTE"]);
        table.row(["orders".into(), "12".into(), String::new()]);
        table.row(["größe".into(), "-".into(), "internal".into()]);
        let mut out = Vec::new();
        table.write(&mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            ["TOPIC   PARTITIONS  NOTE", "orders          12", "größe            -  internal",]
        );
    }
}
