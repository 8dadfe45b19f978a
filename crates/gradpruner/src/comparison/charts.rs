//! The comparison's pictures: figures by layers left, and which layers go.

use std::fmt::Write;

use pipeline::{Comparison, FinetuneMethod};
use selection::Repair;

use super::figures::{Figure, Line};
use crate::page::{
    Axis, Level, Plot, Point, Series, Spread, StripCell, escape, strip, strip_numbers,
};
use crate::units::{compact, percent};

/// Perplexities that differ more are shown on a logarithmic scale.
const FAR_APART: f64 = 10.0;

/// The figure of a set over the number of layers left, a curve a way to prune; nothing if no way has one.
pub(super) fn curves(ratios: &[(String, Vec<Line<'_>>)]) -> Option<(Figure, String)> {
    let lines = || ratios.iter().flat_map(|(_, lines)| lines);
    let figure = lines().next()?.figure();
    let whole: Vec<&Line<'_>> = ratios.first()?.1.iter().filter(|line| !line.is_pruned()).collect();
    let mut looks = Looks::default();
    let mut series: Vec<Series> = Vec::new();
    for (_, table) in ratios {
        for line in table.iter().filter(|line| line.is_pruned() && line.figure() == figure) {
            let Some(point) = point_of(line) else { continue };
            let at = series.iter().position(|series| series.name == line.name);
            let at = at.unwrap_or_else(|| {
                let (hue, dashed) = looks.of(line);
                // A curve begins at the dense model that was fine-tuned alike.
                let start = line.dense.and_then(|at| point_of(table.get(at)?));
                series.push(Series {
                    name: line.name.clone(),
                    hue,
                    dashed,
                    points: start.into_iter().collect(),
                    spreads: Vec::new(),
                });
                series.len() - 1
            });
            series[at].points.push(point);
            if let Some((low, high)) = line.spread().filter(|(low, high)| low < high) {
                series[at].spreads.push(Spread { x: point.x, low, high });
            }
        }
    }
    for series in &mut series {
        series.points.sort_by(|one, other| other.x.total_cmp(&one.x));
    }
    if series.is_empty() {
        return None;
    }
    let levels = levels(&whole, lines().find_map(Line::majority), figure);
    let (x, y) = axes(&series, &levels, figure);
    let title = format!("{} by layers left", figure.name());
    Some((figure, Plot { title, x, y, series, levels, dots: true }.html()))
}

/// Hues tell criteria apart; dashes, and further hues, the repairs and trainings of each.
#[derive(Default)]
struct Looks {
    criteria: Vec<String>,
    variants: Vec<(Repair, FinetuneMethod)>,
}

impl Looks {
    /// The hue of a line's curve, and whether it is dashed.
    fn of(&mut self, line: &Line<'_>) -> (usize, bool) {
        let cell = line.results.first().map(|result| &result.cell);
        let Some((way, finetune)) = cell.and_then(|cell| Some((cell.way.as_ref()?, cell.finetune)))
        else {
            return (0, false);
        };
        let criterion = place(&mut self.criteria, way.chosen_by());
        let variant = place(&mut self.variants, (way.repair, finetune));
        (criterion + variant / 2 * self.criteria.len(), variant % 2 == 1)
    }
}

/// Where an item stands in a list, at its end if it was not there.
fn place<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|other| *other == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

/// Where a line stands: its layers and its figure.
fn point_of(line: &Line<'_>) -> Option<Point> {
    Some(Point { x: line.results.first()?.size.num_layers as f64, y: line.value()? })
}

/// What curves are held to: the dense models and the baselines, whose layers are not this model's, and the most frequent
/// answer.
fn levels(whole: &[&Line<'_>], majority: Option<f64>, figure: Figure) -> Vec<Level> {
    let of_whole = whole.iter().filter_map(|line| {
        let y = line.value()?;
        Some(Level { name: format!("{}, {}", line.name, figure.text(y)), class: "soft", y })
    });
    let of_majority = majority.filter(|_| figure == Figure::Accuracy).map(|y| Level {
        name: format!("most frequent answer, {}", percent(y)),
        class: "floor",
        y,
    });
    of_whole.chain(of_majority).collect()
}

fn axes(series: &[Series], levels: &[Level], figure: Figure) -> (Axis, Axis) {
    let points = || series.iter().flat_map(|series| &series.points);
    let spreads = series.iter().flat_map(|series| &series.spreads);
    let values = points()
        .map(|point| point.y)
        .chain(spreads.flat_map(|spread| [spread.low, spread.high]))
        .chain(levels.iter().map(|level| level.y));
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let logarithmic = figure == Figure::Perplexity && low > 0.0 && high > FAR_APART * low;
    // Figures that hardly differ are not drawn as if they did.
    let room =
        (0.08 * (high - low)).max(0.02 * if figure == Figure::Perplexity { high } else { 1.0 });
    let (begin, end) = match figure {
        _ if logarithmic => (low / 1.2, high * 1.2),
        Figure::Accuracy | Figure::RougeL => ((low - room).max(0.0), (high + room).min(1.0)),
        Figure::Perplexity => ((low - room).max(0.0), high + room),
    };
    let mut layers: Vec<f64> = points().map(|point| point.x).collect();
    layers.sort_by(|one, other| other.total_cmp(one));
    layers.dedup();
    let (most, fewest) = (layers.first().copied(), layers.last().copied());
    let x = Axis {
        label: "layers left".into(),
        begin: most.unwrap_or(1.0),
        end: fewest.unwrap_or(0.0),
        logarithmic: false,
        ticks: layers,
        text: |value| format!("{value:.0}"),
    };
    let y = Axis {
        label: format!("{}{}", figure.name(), if logarithmic { ", logarithmic scale" } else { "" }),
        begin,
        end,
        logarithmic,
        ticks: Vec::new(),
        text: match figure {
            Figure::Accuracy => percent,
            Figure::RougeL => |value| format!("{value:.2}"),
            Figure::Perplexity => compact,
        },
    };
    (x, y)
}

/// Which layers each criterion takes, a strip a ratio and criterion; the stronger a cell's colour, the more seeds take it.
pub(super) fn heat_map(found: &Comparison) -> String {
    let mut rows: Vec<(String, Vec<&[usize]>)> = Vec::new();
    for result in &found.cells {
        let Some(way) = &result.cell.way else { continue };
        let name = format!("{} {}", way.prune, way.chosen_by());
        match rows.iter_mut().find(|(known, _)| *known == name) {
            Some((_, choices)) => choices.push(&result.pruned),
            None => rows.push((name, vec![&result.pruned])),
        }
    }
    let num_layers = found
        .cells
        .iter()
        .filter(|result| result.cell.baseline.is_none())
        .map(|result| result.size.num_layers + result.pruned.len())
        .max()
        .unwrap_or(0);
    let mut html = String::from("<div class=\"heat\">");
    for (name, choices) in &rows {
        let cell = |layer: usize| {
            let takes = choices.iter().filter(|pruned| pruned.contains(&layer)).count();
            let share = takes as f64 / choices.len() as f64;
            StripCell {
                class: if takes > 0 { "heated" } else { "" },
                share: (takes > 0).then_some(share),
                about: match takes {
                    0 => "kept".into(),
                    _ if takes == choices.len() => "removed".into(),
                    _ => format!("removed in {} of cells", percent(share)),
                },
            }
        };
        let _ =
            write!(html, "<span class=\"name\">{}</span>{}", escape(name), strip(num_layers, cell));
    }
    let _ = write!(html, "<span></span>{}</div>", strip_numbers(num_layers));
    html
}

#[cfg(test)]
mod tests {
    use super::super::figures::by_ratio;
    use super::super::tests::{cell, comparison};
    use super::*;

    #[test]
    fn curves_begin_at_the_dense_model_and_know_the_floor() {
        let cells = [
            cell(None, 0, 36),
            cell(None, 1, 36),
            cell(Some(("33%", "igia")), 0, 30),
            cell(Some(("33%", "igia")), 1, 34),
        ];
        let found = comparison(&cells);
        let (figure, html) = curves(&by_ratio(&found, 0)).unwrap();
        assert_eq!(figure, Figure::Accuracy);
        // A point for the dense model and one for 33 %, in both sizes of the picture.
        assert_eq!(html.matches("<circle").count(), 4);
        assert_eq!(html.matches("class=\"spread c0\"").count(), 2);
        assert!(html.contains("most frequent answer, 25.0 %"), "{html}");
        assert!(html.contains("dense, lora, 90.0 %"), "{html}");
        assert!(html.contains("layers left"), "{html}");
        assert!(html.contains("class=\"series c0\""), "{html}");
        let dense = comparison(&cells[..2]);
        assert!(curves(&by_ratio(&dense, 0)).is_none());
    }

    #[test]
    fn criteria_have_hues_and_repairs_dashes() {
        let mut mapped = cell(Some(("33%", "bi")), 0, 31);
        mapped["cell"]["way"]["repair"] = "linear-map".into();
        let cells = [cell(Some(("33%", "igia")), 0, 34), cell(Some(("33%", "bi")), 0, 30), mapped];
        let found = comparison(&cells);
        let (_, html) = curves(&by_ratio(&found, 0)).unwrap();
        // Best first: igia by `drop`, bi by `linear-map`, bi by `drop`.
        for part in ["\"series c0\"", "\"series c1 dashed\"", "\"series c1\""] {
            assert_eq!(html.matches(part).count(), 2, "{part}");
        }
    }

    #[test]
    fn the_heat_map_counts_seeds() {
        let mut other = cell(Some(("33%", "igia")), 1, 30);
        other["pruned"] = serde_json::json!([3, 4]);
        let html =
            heat_map(&comparison(&[cell(None, 0, 36), cell(Some(("33%", "igia")), 0, 30), other]));
        // Layers 2 and 4 of one seed each, layer 3 of both.
        assert_eq!(html.matches("--share:0.50").count(), 2);
        assert_eq!(html.matches("--share:1.00").count(), 1);
        assert!(html.contains("title=\"layer 5: kept\""), "{html}");
    }
}
