//! The comparison on one self-contained page.

use pipeline::{CompareSettings, Comparison};

use super::{AGREEMENT, Remake, agreement, charts, figures, missing, remake, sentence, trained_on};
use crate::page::{escape, page};
use crate::units::counted;

/// The page.
pub(crate) fn html(found: &Comparison, settings: &CompareSettings) -> String {
    let title = format!("Ways to prune {}", short(&found.model));
    let mut body = format!(
        "<h1>{}</h1><p class=\"soft\">{}, trained on {}; {}, all on the same rows.</p>",
        escape(&title),
        escape(&found.model),
        escape(&found.train),
        counted(found.cells.len(), "cell"),
    );
    for missing in missing(found) {
        body.push_str(&format!("<p class=\"warning\">{}</p>", escape(&missing)));
    }
    for set in 0..found.evals.len() {
        body.push_str(&evaluated_on(found, settings, set));
    }
    body.push_str(&format!(
        "<h2>Which layers go</h2><p class=\"note\">A row for each ratio and criterion, a column for each layer; the \
         stronger the colour, the more seeds remove it. Equal rows are equal plans.</p>{}",
        charts::heat_map(found)
    ));
    let matrices = agreement::matrices(found);
    if !matrices.is_empty() {
        let tables: String = matrices
            .iter()
            .map(|(ratio, table)| format!("<div><h3>{ratio} pruned</h3>{}</div>", table.html()))
            .collect();
        body.push_str(&format!(
            "<h2>Agreement between criteria</h2><p class=\"note\">{AGREEMENT}</p><div class=\"matrices\">{tables}</div>"
        ));
    }
    page(&title, &body)
}

/// What came out on one set.
fn evaluated_on(found: &Comparison, settings: &CompareSettings, set: usize) -> String {
    let name = escape(&found.evals[set]);
    let ratios = figures::by_ratio(found, set);
    let mut html = String::new();
    for (ratio, lines) in &ratios {
        html.push_str(&format!("<h2>{name}, {ratio} of the layers pruned</h2>"));
        if let Some(warning) = trained_on(found, set) {
            html.push_str(&format!("<p class=\"warning\">{}</p>", escape(&warning)));
        }
        if let Some(sentence) = sentence(lines) {
            html.push_str(&format!("<p class=\"sentence\">{}</p>", escape(&sentence)));
        }
        html.push_str(&figures::table(lines).html());
        if let Some(refused) = figures::refused(lines) {
            html.push_str(&format!("<p class=\"note\">{}</p>", escape(&refused)));
        }
        if let Some(Remake { about, command }) = remake(found, settings, lines, set) {
            html.push_str(&format!(
                "<p class=\"note\">{}</p><pre class=\"command\">{}</pre>",
                escape(&about),
                escape(&command)
            ));
        }
    }
    if !ratios.is_empty() {
        html.push_str(
            "<p class=\"note\">Figures are means over seeds, with their 95 % intervals (of an accuracy Wilson's, else by bootstrap over rows); \
             beside them the worst and the best seed. The test against the dense model is the sign-flip test over the same rows (of \
             accuracies and one seed, McNemar's): with p below 0.05 they differ significantly. Minutes cover all stages that a cell \
             needs, including those it shares with others; those of choosing are spent beyond the training: to choose layers, to repair, and in a race on those that lost.</p>",
        );
    }
    if let Some((figure, curves)) = charts::curves(&ratios) {
        html.push_str(&format!("<h2>{name}, {} by layers left</h2>{curves}", figure.name()));
    }
    html
}

/// The last part of a path or of a hub name.
fn short(model: &str) -> &str {
    model.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(model)
}
