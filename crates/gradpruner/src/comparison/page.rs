//! The comparison on one self-contained page.

use std::fmt::Write;

use pipeline::Comparison;

use super::figures::{self, Line};

const STYLE: &str = include_str!("page.css");
/// Hues of curves, told apart in light and dark and by people who confuse red and green.
const HUES: [&str; 8] =
    ["#3b7dd8", "#d98a1f", "#2a9d8f", "#a04fb8", "#c2452d", "#7a8b2c", "#5c6bc0", "#8d6e63"];
const WIDTH: f64 = 820.0;

/// The page.
pub(crate) fn html(found: &Comparison) -> String {
    let mut body = format!(
        "<h1>Ways to prune {}</h1><p class=\"soft\">Trained on {}, all cells on the same rows; {} cells, {} left out for \
         want of time.</p>",
        escape(&found.model),
        escape(&found.train),
        found.cells.len(),
        found.left_out.len()
    );
    for (set, name) in found.evals.iter().enumerate() {
        let ratios = figures::by_ratio(found, set);
        for (ratio, lines) in &ratios {
            let _ = write!(body, "<h2>{}, {ratio} of the layers gone</h2>", escape(name));
            if let Some(sentence) = figures::sentence(lines) {
                let _ = write!(body, "<p class=\"sentence\">{}</p>", escape(&sentence));
            }
            body.push_str(&table(lines));
        }
        if ratios.iter().any(|(_, lines)| lines.iter().any(|line| line.accuracy().is_some())) {
            let _ = write!(
                body,
                "<h2>{}, accuracy by layers left</h2>{}",
                escape(name),
                curves(&ratios)
            );
        }
    }
    let _ = write!(
        body,
        "<h2>Which layers go</h2><p class=\"soft\">A row a way to prune, a column a layer; the first seed. Equal rows are equal \
         plans.</p>{}",
        layers(found)
    );
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Ways to prune {}</title><style>{STYLE}</style></head><body>{body}\
         <p class=\"soft\">Accuracy is the mean over seeds, its interval Wilson's at 95 %; the test against the dense model is \
         the exact sign test over the same rows (of one seed, McNemar's). Minutes are of all stages that a cell needs, those it \
         shares among them.</p>\
         <footer>gradpruner {}</footer></body></html>\n",
        escape(&found.model),
        env!("CARGO_PKG_VERSION")
    )
}

fn table(lines: &[Line<'_>]) -> String {
    let row = |tag: &str, cells: &[String]| {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>()
    };
    let headings = row("th", &figures::HEADINGS.map(str::to_owned));
    let best = lines.iter().position(|line| !line.is_dense());
    let body: String = lines
        .iter()
        .enumerate()
        .map(|(at, line)| {
            let class = match (line.is_dense(), Some(at) == best) {
                (true, _) => " class=\"dense\"",
                (_, true) => " class=\"best\"",
                _ => "",
            };
            format!("<tr{class}>{}</tr>", row("td", &line.cells()))
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>"
    )
}

/// Accuracy over the number of layers left, a curve a way.
fn curves(ratios: &[(String, Vec<Line<'_>>)]) -> String {
    let mut ways: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for line in ratios.iter().flat_map(|(_, lines)| lines) {
        let layers = line.results.first().map_or(0, |result| result.size.num_layers) as f64;
        let Some(accuracy) = line.accuracy() else { continue };
        match ways.iter_mut().find(|(name, _)| *name == line.name) {
            // The dense model stands in every table.
            Some((_, points)) if line.is_dense() && !points.is_empty() => {}
            Some((_, points)) => points.push((layers, accuracy)),
            None => ways.push((line.name.clone(), vec![(layers, accuracy)])),
        }
    }
    let all = || ways.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        all()
            .map(of)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let ((fewest, most), (low, high)) = (bounds(|point| point.0), bounds(|point| point.1));
    let (low, high) = ((low - 0.02).max(0.0), (high + 0.02).min(1.0));
    let (left, plot, bottom) = (52.0, 260.0, 290.0);
    let x = |layers: f64| left + (WIDTH - left - 12.0) * (most - layers) / (most - fewest).max(1.0);
    let y = |share: f64| 12.0 + (plot - 12.0) * (high - share) / (high - low).max(1e-9);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Accuracy by layers left\">",
        bottom + 18.0 * ways.len() as f64
    );
    for step in 0..=4 {
        let share = low + (high - low) * f64::from(step) / 4.0;
        let at = y(share);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{left}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
            left - 6.0,
            at + 4.0,
            100.0 * share
        );
    }
    let mut seen: Vec<f64> = all().map(|point| point.0).collect();
    seen.sort_by(f64::total_cmp);
    seen.dedup();
    for layers in seen {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{layers:.0}</text>",
            x(layers),
            plot + 16.0
        );
    }
    // A curve begins at the dense model that was fine-tuned alike.
    let start_of = |name: &str| {
        let finetune = name.rsplit(", ").next().unwrap_or_default();
        let dense = ways.iter().find(|(other, _)| *other == format!("dense, {finetune}"))?;
        dense.1.first().copied()
    };
    for (number, (name, points)) in ways.iter().enumerate() {
        let is_dense = name.starts_with("dense");
        let hue = HUES[number % HUES.len()];
        let mut points: Vec<(f64, f64)> = points.clone();
        points.extend(start_of(name).filter(|_| !is_dense));
        points.sort_by(|one, other| other.0.total_cmp(&one.0));
        let path: Vec<String> = points
            .iter()
            .map(|&(layers, share)| format!("{:.1},{:.1}", x(layers), y(share)))
            .collect();
        let style = if is_dense { "dense-line" } else { "curve" };
        let _ = write!(
            svg,
            "<polyline class=\"{style}\" stroke=\"{hue}\" points=\"{}\"/>",
            path.join(" ")
        );
        for point in &path {
            let (cx, cy) = point.split_once(',').unwrap_or_default();
            let _ = write!(svg, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3.5\" fill=\"{hue}\"/>");
        }
        let at = bottom + 18.0 * number as f64;
        let _ = write!(
            svg,
            "<circle cx=\"{left}\" cy=\"{}\" r=\"4\" fill=\"{hue}\"/><text x=\"{}\" y=\"{at}\">{}</text>",
            at - 4.0,
            left + 10.0,
            escape(name)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// A square a layer, filled where it goes.
fn layers(found: &Comparison) -> String {
    let first = found.cells.iter().map(|result| result.cell.seed).min();
    let mut rows: Vec<(String, &[usize])> = Vec::new();
    for result in found.cells.iter().filter(|result| Some(result.cell.seed) == first) {
        let Some(way) = &result.cell.way else { continue };
        let name = format!("{} {}", way.prune, way.criterion);
        if !rows.iter().any(|(known, _)| *known == name) {
            rows.push((name, &result.pruned));
        }
    }
    let dense = found.cells.iter().find(|result| result.cell.way.is_none());
    let num_layers = dense.map_or(0, |result| result.size.num_layers);
    let (left, step) = (130.0, (WIDTH - 130.0) / num_layers.max(1) as f64);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Layers that go\">",
        22.0 * rows.len() as f64 + 20.0
    );
    for (number, (name, pruned)) in rows.iter().enumerate() {
        let y = 22.0 * number as f64;
        let _ = write!(svg, "<text x=\"0\" y=\"{}\">{}</text>", y + 14.0, escape(name));
        for layer in 0..num_layers {
            let class = if pruned.contains(&layer) { "gone" } else { "kept" };
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"16\"><title>layer {layer}: \
                 {class}</title></rect>",
                left + step * layer as f64,
                y + 2.0,
                (step - 2.0).max(1.0)
            );
        }
    }
    for layer in (0..num_layers).step_by(5) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{layer}</text>",
            left + step * (layer as f64 + 0.5),
            22.0 * rows.len() as f64 + 14.0
        );
    }
    svg.push_str("</svg>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
