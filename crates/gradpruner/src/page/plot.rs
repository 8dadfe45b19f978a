//! Plots, as SVG that takes its colours from the page.

use std::fmt::Write;

use super::{escape, hue};

/// How large a plot is drawn. Each is drawn for wide and for narrow screens, since text that shrinks with a picture
/// cannot be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    width: f64,
    height: f64,
    /// Ticks of an axis at most.
    ticks: usize,
}

const WIDE: Layout = Layout { width: 900.0, height: 280.0, ticks: 10 };
const NARROW: Layout = Layout { width: 380.0, height: 240.0, ticks: 5 };
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 42.0;
/// Ticks of a vertical axis at most.
const VERTICAL_TICKS: usize = 5;
/// The width of a tick's text with room beside it.
const TICK_WIDTH: f64 = 34.0;

/// A picture for both kinds of screen.
pub(crate) fn figure(draw: impl Fn(Layout) -> String) -> String {
    format!(
        "<figure><div class=\"on-wide\">{}</div><div class=\"on-narrow\">{}</div></figure>",
        draw(WIDE),
        draw(NARROW)
    )
}

/// An axis: what it shows, and from where to where. One that ends below its beginning runs backwards.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) begin: f64,
    pub(crate) end: f64,
    pub(crate) logarithmic: bool,
    /// The only values that have ticks; if none are given, round ones do.
    pub(crate) ticks: Vec<f64>,
    /// A value as its ticks show it.
    pub(crate) text: fn(f64) -> String,
}

impl Axis {
    /// Where a value lies between the axis' ends, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let of = |x: f64| if self.logarithmic { x.ln() } else { x };
        let length = of(self.end) - of(self.begin);
        if length == 0.0 { 0.5 } else { (of(value) - of(self.begin)) / length }
    }

    /// Round values on it, `most` or few more.
    fn ticks(&self, most: usize) -> Vec<f64> {
        if !self.ticks.is_empty() {
            return self.ticks.clone();
        }
        let (low, high) = (self.begin.min(self.end), self.begin.max(self.end));
        let ticks = match self.logarithmic {
            true => logarithmic_ticks(low, high, most),
            false => Vec::new(),
        };
        if ticks.len() >= 2 { ticks } else { linear_ticks(low, high, most) }
    }
}

/// The multiples of a round step within a range.
fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let step = round_step((high - low) / most.max(1) as f64);
    if !step.is_normal() {
        return vec![low];
    }
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|number| number as f64 * step).collect()
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
pub(crate) fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// Powers of ten within a range, or 1, 2 and 5 times these if it has few.
fn logarithmic_ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |value: &f64| (low * (1.0 - 1e-9)..=high * (1.0 + 1e-9)).contains(value);
    let powers: Vec<f64> = (first..=last).map(|power| 10_f64.powi(power)).filter(within).collect();
    if powers.len() > 2 {
        let every = powers.len().div_ceil(most.max(1));
        return powers.into_iter().step_by(every).collect();
    }
    (first..=last)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10_f64.powi(power)))
        .filter(within)
        .collect()
}

/// A plot's axes, drawn; what is plotted goes on top.
pub(crate) struct Frame<'a> {
    layout: Layout,
    x: &'a Axis,
    y: &'a Axis,
    pub(crate) svg: String,
}

impl<'a> Frame<'a> {
    /// Lines and texts of the axes.
    pub(crate) fn new(layout: Layout, title: &str, x: &'a Axis, y: &'a Axis) -> Self {
        let Layout { width, height, ticks } = layout;
        let title = escape(title);
        let svg =
            format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">");
        let mut frame = Self { layout, x, y, svg };
        for value in y.ticks(VERTICAL_TICKS) {
            let at = frame.y(value);
            let _ = write!(
                frame.svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                width - RIGHT
            );
            frame.text(LEFT - 7.0, at + 4.0, "end", &(y.text)(value));
        }
        let mut taken: Vec<f64> = Vec::new();
        for value in x.ticks(ticks) {
            let at = frame.x(value);
            if taken.iter().all(|other| (other - at).abs() >= TICK_WIDTH) {
                taken.push(at);
                frame.text(at, height - BOTTOM + 17.0, "middle", &(x.text)(value));
            }
        }
        frame.text(0.0, 13.0, "start", &y.label);
        frame.text((LEFT + width - RIGHT) / 2.0, height - 6.0, "middle", &x.label);
        frame
    }

    /// Where a value of the horizontal axis lies.
    pub(crate) fn x(&self, value: f64) -> f64 {
        LEFT + (self.layout.width - LEFT - RIGHT) * self.x.share(value)
    }

    /// Where a value of the vertical axis lies.
    pub(crate) fn y(&self, value: f64) -> f64 {
        let plot = self.layout.height - TOP - BOTTOM;
        TOP + plot * (1.0 - self.y.share(value))
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, label: &str) {
        let label = escape(label);
        let _ = write!(
            self.svg,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>"
        );
    }

    /// The finished picture.
    pub(crate) fn close(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

/// A point of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

/// A range of values at one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) x: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// A line through points.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) hue: usize,
    pub(crate) dashed: bool,
    pub(crate) points: Vec<Point>,
    pub(crate) spreads: Vec<Spread>,
}

/// A dashed line from side to side.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub(crate) name: String,
    /// One of the hues, or `soft` or `floor` for what belongs to no series.
    pub(crate) class: &'static str,
    pub(crate) y: f64,
}

/// Lines over two axes.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
    pub(crate) levels: Vec<Level>,
    /// Whether each point is marked by a dot.
    pub(crate) dots: bool,
}

impl Plot {
    /// The picture with its key.
    pub(crate) fn html(&self) -> String {
        let of_series = self.series.iter().map(|series| {
            let class =
                format!("{}{}", hue(series.hue), if series.dashed { " dashed" } else { "" });
            (class, series.name.clone())
        });
        let of_levels = self.levels.iter();
        let of_levels =
            of_levels.map(|level| (format!("{} dashed", level.class), level.name.clone()));
        let key = super::key(of_series.chain(of_levels));
        format!("<div class=\"plot\">{key}{}</div>", figure(|layout| self.svg(layout)))
    }

    fn svg(&self, layout: Layout) -> String {
        let mut frame = Frame::new(layout, &self.title, &self.x, &self.y);
        for level in &self.levels {
            let class = level.class;
            let (from, to, y) = (frame.x(self.x.begin), frame.x(self.x.end), frame.y(level.y));
            let _ = write!(
                frame.svg,
                "<line class=\"level {class}\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\">\
                 <title>{}</title></line>",
                escape(&level.name)
            );
        }
        for series in &self.series {
            draw(&mut frame, series);
            if self.dots {
                draw_dots(&mut frame, series);
            }
        }
        frame.close()
    }
}

fn draw(frame: &mut Frame<'_>, series: &Series) {
    let (class, style) = (hue(series.hue), if series.dashed { " dashed" } else { "" });
    let path: Vec<String> = series
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", frame.x(point.x), frame.y(point.y)))
        .collect();
    let _ = write!(
        frame.svg,
        "<polyline class=\"series {class}{style}\" points=\"{}\"/>",
        path.join(" ")
    );
    for spread in &series.spreads {
        let (x, low, high) = (frame.x(spread.x), frame.y(spread.low), frame.y(spread.high));
        let _ = write!(
            frame.svg,
            "<line class=\"spread {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\"/>"
        );
    }
}

fn draw_dots(frame: &mut Frame<'_>, series: &Series) {
    let (class, text) = (hue(series.hue), frame.y.text);
    for point in &series.points {
        let (x, y) = (frame.x(point.x), frame.y(point.y));
        let _ = write!(
            frame.svg,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{}: {}</title></circle>",
            escape(&series.name),
            escape(&text(point.y))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(begin: f64, end: f64, logarithmic: bool) -> Axis {
        let text = |value: f64| format!("{value}");
        Axis { label: "y".into(), begin, end, logarithmic, ticks: Vec::new(), text }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(axis(0.0, 10.0, false).ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(axis(7.0, 1.0, false).ticks(3), [2.0, 4.0, 6.0]);
        assert_eq!(axis(0.5, 2e4, true).ticks(5), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert_eq!(axis(1e-9, 1.0, true).ticks(5).len(), 5);
        assert_eq!(axis(0.4, 6.0, true).ticks(5), [0.5, 1.0, 2.0, 5.0]);
        // Between two of these there is none: as on a linear axis.
        assert_eq!(axis(2.2, 4.2, true).ticks(2), [3.0, 4.0]);
        assert_eq!(axis(3.0, 3.0, false).ticks(5), [3.0]);
    }

    #[test]
    fn values_lie_where_they_belong() {
        let (x, y) = (axis(30.0, 10.0, false), axis(0.01, 100.0, true));
        let frame = Frame::new(WIDE, "t", &x, &y);
        assert_eq!((frame.x(30.0), frame.x(10.0)), (LEFT, 900.0 - RIGHT));
        assert_eq!((frame.y(100.0), frame.y(0.01)), (TOP, 280.0 - BOTTOM));
        // The middle of a logarithmic axis is the geometric mean.
        assert!((frame.y(1.0) - (TOP + 280.0 - BOTTOM) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_plot_escapes_names_and_marks_points() {
        let point = |x, y| Point { x, y };
        let series = Series {
            name: "a<b".into(),
            hue: 1,
            dashed: false,
            points: vec![point(1.0, 1.0), point(2.0, 3.0)],
            spreads: vec![Spread { x: 2.0, low: 2.0, high: 4.0 }],
        };
        let level = Level { name: "floor".into(), class: "floor", y: 2.0 };
        let (x, y) = (axis(1.0, 2.0, false), axis(0.0, 4.0, false));
        let plot =
            Plot { title: "t".into(), x, y, series: vec![series], levels: vec![level], dots: true };
        let html = plot.html();
        assert!(html.contains("a&lt;b") && !html.contains("a<b"), "{html}");
        // Twice: for wide and for narrow screens.
        assert_eq!(html.matches("<circle").count(), 4);
        assert_eq!(html.matches("class=\"spread c1\"").count(), 2);
        assert_eq!(html.matches("class=\"level floor\"").count(), 2);
    }
}
