//! The report's pictures: the layers' scores, and the figures of every step.

use std::fmt::Write;

use pipeline::{Evaluations, LogLine, LoggedLook, Stage};
use selection::{Plan, Scores};

use crate::page::{Axis, Frame, Layout, Level, Plot, Point, Series, figure, hue, key, round_step};
use crate::units::compact;

/// Scores that span more than this are shown on a logarithmic scale.
const MANY_ORDERS: f64 = 100.0;
/// Losses that do.
const FAR_FALL: f64 = 20.0;
/// Points of a line at most; more cannot be told apart.
const MOST_POINTS: usize = 400;

/// A bar a layer, and what the axis and the colours mean.
pub(super) fn score_bars(scores: &Scores, plan: &Plan) -> String {
    let values: Vec<f64> = scores.layers.iter().map(|layer| layer.score).collect();
    let y = score_axis(&values);
    let x = Axis {
        label: "layer".into(),
        begin: -0.5,
        end: values.len() as f64 - 0.5,
        logarithmic: false,
        ticks: (0..values.len()).map(|layer| layer as f64).collect(),
        text: |value| format!("{value:.0}"),
    };
    let donors = plan.donors();
    let state = |layer: usize| match layer {
        _ if donors.contains(&layer) => "merged",
        _ if plan.pruned.contains(&layer) => "gone",
        _ => "kept",
    };
    let draw = |layout: Layout| {
        let mut frame = Frame::new(layout, "Score of each layer", &x, &y);
        // Bars stand on zero, or on the floor where there is none.
        let foot = if y.logarithmic { y.begin } else { 0.0 };
        for (layer, &value) in values.iter().enumerate() {
            let class = state(layer);
            let word = if class == "gone" { "removed" } else { class };
            let (left, right) = (frame.x(layer as f64 - 0.42), frame.x(layer as f64 + 0.42));
            let (one, other) = (frame.y(value.max(y.begin)), frame.y(foot));
            let _ = write!(
                frame.svg,
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\">\
                 <title>layer {layer}: {value:.4e}, {word}</title></rect>",
                one.min(other),
                right - left,
                (one - other).abs(),
            );
        }
        frame.close()
    };
    let mut entries = vec![("kept", "kept".to_owned()), ("bar", "removed".to_owned())];
    if !donors.is_empty() {
        entries.push(("merged", "merged into the layer before".to_owned()));
    }
    format!("<div class=\"plot\">{}{}</div>", key(entries), figure(draw))
}

/// The axis of scores, which says whether it is logarithmic.
fn score_axis(values: &[f64]) -> Axis {
    let (low, high) = bounds(values.iter().copied()).unwrap_or((0.0, 1.0));
    let positive = bounds(values.iter().copied().filter(|&value| value > 0.0));
    let logarithmic = low >= 0.0 && positive.is_some_and(|(low, high)| high > MANY_ORDERS * low);
    let lowest = positive.map_or(low, |(low, _)| low);
    let (begin, end) = match logarithmic {
        // The lowest bar keeps a foot to stand on.
        true => (lowest / 2.0, high * 1.2),
        false => (low.min(0.0), high.max(0.0)),
    };
    Axis {
        label: if logarithmic { "score, logarithmic scale" } else { "score" }.into(),
        begin,
        end: if end > begin { end } else { begin + 1.0 },
        logarithmic,
        ticks: Vec::new(),
        text: compact,
    }
}

/// The steps of one model's training.
struct Steps {
    name: &'static str,
    hue: usize,
    metrics: Vec<finetune::StepMetrics>,
    /// Its looks at the rows held out.
    looks: Vec<LoggedLook>,
}

/// The trainings that ran, each with its steps.
fn trainings(log: &[LogLine]) -> Vec<Steps> {
    let of = |stage: Stage| -> Vec<_> {
        let steps = log.iter().filter_map(|line| line.step());
        steps.filter(|step| step.stage == stage).map(|step| step.metrics).collect()
    };
    let looks = |stage: Stage| -> Vec<_> {
        log.iter().filter_map(|line| line.look()).filter(|look| look.stage == stage).collect()
    };
    let (collected, tuned, dense) =
        (of(Stage::Collect), of(Stage::Finetune), of(Stage::DenseFinetune));
    // Where the training goes on from the collected steps, these are its own first ones. Otherwise they belong to none.
    let goes_on = tuned.first().is_none_or(|step| step.step > 1);
    let all = [
        Steps {
            name: "first steps, before pruning",
            hue: 2,
            metrics: collected,
            looks: Vec::new(),
        },
        Steps { name: "dense", hue: 0, metrics: dense, looks: looks(Stage::DenseFinetune) },
        Steps { name: "pruned", hue: 1, metrics: tuned, looks: looks(Stage::Finetune) },
    ];
    let wanted = |steps: &Steps| !steps.metrics.is_empty() && (goes_on || steps.hue != 2);
    all.into_iter().filter(wanted).collect()
}

/// Loss, learning rate and gradient norm of every step; nothing if none was taken.
pub(super) fn training_charts(log: &[LogLine], evaluations: &Evaluations) -> String {
    let trainings = trainings(log);
    if trainings.is_empty() {
        return String::new();
    }
    let levels = evaluation_losses(evaluations);
    let after = match levels.is_empty() {
        true => "",
        false => {
            "; a dashed line is the loss on the evaluation rows after the last step, the logarithm of the perplexity"
        }
    };
    let of = |of: &dyn Fn(&finetune::StepMetrics) -> f64| lines(&trainings, of);
    let losses = of(&|metrics| metrics.report.loss).into_iter().chain(held_out(&trainings));
    let loss = chart(losses.collect(), "loss per token", levels);
    let norm = chart(of(&|m| m.report.grad_norm), "gradient norm, before clipping", Vec::new());
    let rate = chart(of(&|m| m.report.learning_rate), "learning rate", Vec::new());
    let looked = match trainings.iter().all(|training| training.looks.is_empty()) {
        true => "",
        false => "; those of rows held out are the mean over all of these, after the step",
    };
    format!(
        "<h3>Loss</h3>{loss}<p class=\"note\">Lines are running means over the training rows{looked}{after}.</p>\
         <h3>Gradient norm</h3>{norm}<h3>Learning rate</h3>{rate}"
    )
}

/// The tuned models' losses on the rows to evaluate on.
fn evaluation_losses(evaluations: &Evaluations) -> Vec<Level> {
    [("dense", 0, &evaluations.dense_tuned), ("pruned", 1, &evaluations.pruned_tuned)]
        .into_iter()
        .filter_map(|(name, number, report)| {
            let y = report.as_ref()?.perplexity?.ln();
            let name = format!("{name}, evaluation loss {y:.3}");
            Some(Level { name, class: hue(number), y })
        })
        .collect()
}

/// A figure of every step, a line a training.
fn lines(trainings: &[Steps], of: &dyn Fn(&finetune::StepMetrics) -> f64) -> Vec<Series> {
    let line = |steps: &Steps| {
        let points = steps.metrics.iter().map(|m| Point { x: m.step as f64, y: of(m) });
        Series {
            name: steps.name.into(),
            hue: steps.hue,
            dashed: false,
            points: thinned(smoothed(&points.collect::<Vec<_>>())),
            spreads: Vec::new(),
        }
    };
    trainings.iter().map(line).collect()
}

/// The losses on rows held out, of the trainings that looked at them.
fn held_out(trainings: &[Steps]) -> Vec<Series> {
    let line = |steps: &Steps| {
        let points =
            steps.looks.iter().map(|look| Point { x: look.step as f64, y: look.eval_loss });
        Series {
            name: format!("{}, rows held out", steps.name),
            hue: steps.hue,
            dashed: true,
            points: thinned(points.collect()),
            spreads: Vec::new(),
        }
    };
    trainings.iter().filter(|steps| !steps.looks.is_empty()).map(line).collect()
}

fn chart(series: Vec<Series>, what: &str, levels: Vec<Level>) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let values = points().map(|point| point.y).chain(levels.iter().map(|level| level.y));
    let (low, high) = bounds(values).unwrap_or((0.0, 1.0));
    let last = points().map(|point| point.x).fold(1.0, f64::max);
    let logarithmic = low > 0.0 && high > FAR_FALL * low;
    let room = if logarithmic { 0.0 } else { 0.05 * (high - low).max(1e-9) };
    let y = Axis {
        label: format!("{what}{}", if logarithmic { ", logarithmic scale" } else { "" }),
        begin: if low >= 0.0 { (low - room).max(0.0) } else { low - room },
        end: high + room,
        logarithmic,
        ticks: Vec::new(),
        text: compact,
    };
    let x = Axis {
        label: "step".into(),
        begin: 1.0,
        end: last.max(2.0),
        logarithmic: false,
        ticks: step_ticks(last),
        text: |value| format!("{value:.0}"),
    };
    Plot { title: format!("{what} by step"), x, y, series, levels, dots: false }.html()
}

/// The first step, the last, and round ones between.
fn step_ticks(last: f64) -> Vec<f64> {
    let every = round_step(last / 8.0).max(1.0);
    let round = (1..).map(|number| f64::from(number) * every);
    let between = round.take_while(|step| *step < last - every / 2.0).filter(|step| *step > 1.0);
    // The ends come first: where there is no room for all, they stay.
    let mut ticks = vec![1.0, last];
    ticks.extend(between);
    ticks.dedup();
    ticks
}

/// Running means, so that noisy lines can be told apart.
fn smoothed(points: &[Point]) -> Vec<Point> {
    let reach = (points.len() / 40).max(usize::from(points.len() > 12));
    (0..points.len())
        .map(|at| {
            let window = &points[at.saturating_sub(reach)..(at + reach + 1).min(points.len())];
            let mean = window.iter().map(|point| point.y).sum::<f64>() / window.len() as f64;
            Point { x: points[at].x, y: mean }
        })
        .collect()
}

/// Every so many points, the first and the last among them.
fn thinned(points: Vec<Point>) -> Vec<Point> {
    let every = points.len().div_ceil(MOST_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    let wanted = |at: usize| at.is_multiple_of(every) || at == last;
    points.into_iter().enumerate().filter(|(at, _)| wanted(*at)).map(|(_, point)| point).collect()
}

/// The least and the greatest of the values that are finite.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |found, value| match found {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stage: &str, number: usize) -> LogLine {
        serde_json::from_value(serde_json::json!({
            "stage": stage, "step": number, "total_steps": 6, "loss": 1.0 / number as f64, "grad_norm": 2.0,
            "learning_rate": 1e-3, "tokens": 9, "seconds": 0.1,
        }))
        .unwrap()
    }

    fn names(steps: &[LogLine]) -> Vec<&'static str> {
        trainings(steps).iter().map(|steps| steps.name).collect()
    }

    #[test]
    fn only_trainings_that_ran_are_shown_from_step_1_on() {
        let on: Vec<_> = (1..=3)
            .map(|n| step("collect", n))
            .chain((4..=6).map(|n| step("finetune", n)))
            .collect();
        assert_eq!(names(&on), ["first steps, before pruning", "pruned"]);
        let anew: Vec<_> = (1..=3)
            .map(|n| step("collect", n))
            .chain((1..=6).map(|n| step("finetune", n)))
            .collect();
        assert_eq!(names(&anew), ["pruned"]);
        assert_eq!(names(&[]), Vec::<&str>::new());
        assert_eq!(step_ticks(6.0), [1.0, 6.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(step_ticks(87.0), [1.0, 87.0, 20.0, 40.0, 60.0]);
        assert_eq!(step_ticks(1.0), [1.0]);
    }

    #[test]
    fn a_scale_says_that_it_is_logarithmic() {
        let wide = score_axis(&[1e-9, 3e-7, 2e-5]);
        assert!(wide.logarithmic && wide.label.contains("logarithmic") && wide.begin < 1e-9);
        let near = score_axis(&[0.1, 0.5]);
        assert_eq!((near.logarithmic, near.begin, near.end), (false, 0.0, 0.5));
        // Scores below zero, as `max-rm-bi` gives them.
        let signed = score_axis(&[-1.5, 0.001, 2.0]);
        assert_eq!((signed.logarithmic, signed.begin, signed.end), (false, -1.5, 2.0));
        let same = score_axis(&[0.0, 0.0]);
        assert!(same.end > same.begin);
    }

    #[test]
    fn lines_are_smoothed_and_thinned_at_the_same_ends() {
        let points: Vec<Point> =
            (0..1000).map(|n| Point { x: f64::from(n), y: f64::from(n % 2) }).collect();
        let found = thinned(smoothed(&points));
        assert!(found.len() <= MOST_POINTS + 1, "{}", found.len());
        assert_eq!((found[0].x, found[found.len() - 1].x), (0.0, 999.0));
        // A mean over 25 points on either side of alternating zeros and ones.
        let middle = smoothed(&points)[500].y;
        let expected = (475..=525).map(|n| f64::from(n % 2)).sum::<f64>() / 51.0;
        assert!((middle - expected).abs() < 1e-12);
        let few = points[..5].to_vec();
        assert_eq!(smoothed(&few), few);
    }
}
