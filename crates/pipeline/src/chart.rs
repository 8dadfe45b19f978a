//! The report's pictures, as SVG that takes its colours from the page.

use std::fmt::Write;

use selection::{Plan, Scores};

use crate::Stage;
use crate::log::Line;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;

/// A bar a layer, on a logarithmic scale where the scores span more than two orders of magnitude.
pub(crate) fn score_bars(scores: &Scores, plan: &Plan) -> String {
    let values: Vec<f64> = scores.layers.iter().map(|layer| layer.score).collect();
    let positive = values.iter().copied().filter(|&value| value > 0.0);
    let (low, high) = positive
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let logarithmic = high > 100.0 * low;
    let share = |value: f64| -> f64 {
        if value <= 0.0 || high <= 0.0 {
            0.0
        } else if logarithmic {
            // The lowest bar keeps a foot to stand on.
            0.04 + 0.96 * (value / low).ln() / (high / low).ln()
        } else {
            value / high
        }
    };
    let (plot, donors) = (HEIGHT - BOTTOM - 12.0, plan.donors());
    let step = (WIDTH - LEFT) / values.len() as f64;
    let mut svg = open("Score of each layer");
    for (layer, &value) in values.iter().enumerate() {
        let class = match layer {
            _ if donors.contains(&layer) => "merged",
            _ if plan.pruned.contains(&layer) => "pruned",
            _ => "kept",
        };
        let (x, height) = (LEFT + step * layer as f64, plot * share(value));
        let y = 12.0 + plot - height;
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>layer {layer}: {value:.4e}, {class}</title></rect>",
            x + 1.0,
            (step - 2.0).max(1.0),
        );
        if step > 16.0 || layer % 5 == 0 {
            text(&mut svg, x + step / 2.0, HEIGHT - 10.0, "middle", &layer.to_string());
        }
    }
    for (share_up, value) in [(0.0, low), (1.0, high)] {
        let label = if logarithmic || share_up > 0.0 { format!("{value:.1e}") } else { "0".into() };
        text(&mut svg, LEFT - 6.0, 12.0 + plot * (1.0 - share_up), "end", &label);
    }
    close(svg)
}

/// The loss of each step, a line a stage, on a logarithmic scale where it falls far.
pub(crate) fn loss_curves(lines: &[Line]) -> String {
    let stages = [(Stage::Finetune, "tuned"), (Stage::DenseFinetune, "dense")];
    let of = |stage: Stage| -> Vec<(f64, f64)> {
        let points = lines.iter().filter(|line| line.stage == stage);
        smoothed(
            &points
                .map(|line| (line.metrics.step as f64, line.metrics.report.loss))
                .collect::<Vec<_>>(),
        )
    };
    let all: Vec<(f64, f64)> = stages.iter().flat_map(|(stage, _)| of(*stage)).collect();
    if all.is_empty() {
        return String::new();
    }
    let last = all.iter().map(|point| point.0).fold(1.0, f64::max);
    let high = all.iter().map(|point| point.1).fold(f64::MIN, f64::max);
    let low = all.iter().map(|point| point.1).fold(f64::MAX, f64::min).min(high * 0.999);
    let plot = HEIGHT - BOTTOM - 12.0;
    let logarithmic = low > 0.0 && high > 20.0 * low;
    let share = |loss: f64| match logarithmic {
        true => (loss / low).ln() / (high / low).ln(),
        false => (loss - low) / (high - low),
    };
    let at = |(step, loss): (f64, f64)| {
        let x = LEFT + (WIDTH - LEFT) * step / last;
        (x, 12.0 + plot * (1.0 - share(loss)))
    };
    let mut svg = open("Training loss by step");
    for (stage, class) in stages {
        let path: Vec<String> =
            of(stage).into_iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        if !path.is_empty() {
            let _ = write!(svg, "<polyline class=\"{class}\" points=\"{}\"/>", path.join(" "));
        }
    }
    for (y, value) in [(12.0, high), (12.0 + plot, low)] {
        text(&mut svg, LEFT - 6.0, y + 4.0, "end", &format!("{value:.3}"));
    }
    text(&mut svg, LEFT, HEIGHT - 8.0, "start", "step 1");
    text(&mut svg, WIDTH, HEIGHT - 8.0, "end", &format!("step {last:.0}"));
    close(svg)
}

/// Running means, so that two noisy lines can be told apart.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 40).max(1);
    (0..points.len())
        .map(|at| {
            let window = &points[at.saturating_sub(reach)..(at + reach + 1).min(points.len())];
            let mean = window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64;
            (points[at].0, mean)
        })
        .collect()
}

fn open(title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
    )
}

fn close(mut svg: String) -> String {
    svg.push_str("</svg>");
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, label: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>");
}
