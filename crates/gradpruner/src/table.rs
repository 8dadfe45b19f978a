//! Tables, as aligned text, as Markdown and as HTML: the same cells in each.

use crate::page::escape;

/// Headings and rows. The first column is a name, the others are figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    headings: Vec<String>,
    rows: Vec<Row>,
}

/// One row, and how a page marks it.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    cells: Vec<String>,
    class: &'static str,
}

impl Table {
    /// A table of no rows yet.
    pub(crate) fn new<T: Into<String>>(headings: impl IntoIterator<Item = T>) -> Self {
        Self { headings: headings.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are headings. On a page it has this class, if that is not empty.
    pub(crate) fn add(&mut self, cells: Vec<String>, class: &'static str) {
        debug_assert_eq!(cells.len(), self.headings.len(), "a cell a heading");
        self.rows.push(Row { cells, class });
    }

    /// The same without the columns that only have dashes.
    pub(crate) fn without_empty_columns(self) -> Self {
        let used: Vec<bool> = (0..self.headings.len())
            .map(|column| self.rows.iter().any(|row| row.cells[column] != "–"))
            .collect();
        let of = |cells: Vec<String>| -> Vec<String> {
            cells.into_iter().zip(&used).filter(|(_, used)| **used).map(|(cell, _)| cell).collect()
        };
        let rows = self.rows.into_iter();
        Self {
            headings: of(self.headings),
            rows: rows.map(|row| Row { cells: of(row.cells), ..row }).collect(),
        }
    }

    /// Aligned with spaces, a line below the headings.
    pub(crate) fn text(&self) -> String {
        let width = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| width(&row.cells[column]));
                cells.chain([width(&self.headings[column])]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let fill = " ".repeat(widths[column] - width(cell));
                match column {
                    0 => text.push_str(&format!("{cell}{fill}")),
                    _ => text.push_str(&format!("  {fill}{cell}")),
                }
            }
            text.trim_end().to_owned()
        };
        let all = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut lines = vec![line(&self.headings), "─".repeat(all)];
        lines.extend(self.rows.iter().map(|row| line(&row.cells)));
        lines.join("\n")
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| cell.trim().replace('|', "\\|")).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rule = match self.headings.len() {
            0 => String::new(),
            columns => format!("|---|{}", "--:|".repeat(columns - 1)),
        };
        let mut lines = vec![line(&self.headings), rule];
        lines.extend(self.rows.iter().map(|row| line(&row.cells)));
        lines.join("\n")
    }

    /// As HTML, which scrolls sideways where the screen is narrow.
    pub(crate) fn html(&self) -> String {
        let cells = |cells: &[String], tag: &str| -> String {
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell.trim()))).collect()
        };
        let body: String = self
            .rows
            .iter()
            .map(|row| {
                let class = match row.class {
                    "" => String::new(),
                    class => format!(" class=\"{class}\""),
                };
                format!("<tr{class}>{}</tr>", cells(&row.cells, "td"))
            })
            .collect();
        format!(
            "<div class=\"wide\"><table><thead><tr>{}</tr></thead><tbody>{body}</tbody></table></div>",
            cells(&self.headings, "th")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_dashes_are_left_out() {
        let mut table = Table::new(["", "x", "y"]);
        for (name, y) in [("a", "1"), ("b", "–")] {
            table.add([name, "–", y].map(str::to_owned).to_vec(), "");
        }
        let expected = "|  | y |\n|---|--:|\n| a | 1 |\n| b | – |";
        assert_eq!(table.without_empty_columns().markdown(), expected);
    }

    #[test]
    fn the_same_cells_in_each_form() {
        let mut table = Table::new(["", "accuracy"]);
        table.add(vec!["a|b <c>".into(), "50.0 %".into()], "");
        table.add(vec!["d".into(), "–".into()], "dense");
        assert_eq!(
            table.text(),
            "         accuracy\n─────────────────\na|b <c>    50.0 %\nd               –"
        );
        assert_eq!(
            table.markdown(),
            "|  | accuracy |\n|---|--:|\n| a\\|b <c> | 50.0 % |\n| d | – |"
        );
        assert_eq!(
            table.html(),
            "<div class=\"wide\"><table><thead><tr><th></th><th>accuracy</th></tr></thead><tbody>\
             <tr><td>a|b &lt;c&gt;</td><td>50.0 %</td></tr><tr class=\"dense\"><td>d</td><td>–</td></tr>\
             </tbody></table></div>"
        );
    }
}
