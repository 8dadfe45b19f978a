//! Self-contained HTML pages: what all of them share.

mod plot;

use std::fmt::Display;

pub(crate) use self::plot::{
    Axis, Frame, Layout, Level, Plot, Point, Series, Spread, figure, round_step,
};

const STYLE: &str = include_str!("page.css");

/// How many hues there are for what is told apart by colour; the style has them for light and dark.
const HUES: usize = 8;

/// A page of this title; the body is HTML.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>{body}\
         <footer>gradpruner {version}</footer></body></html>\n",
        title = escape(title),
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Text as HTML shows it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What colours mean: a swatch of each class, and what it stands for.
pub(crate) fn key<C: Display>(entries: impl IntoIterator<Item = (C, String)>) -> String {
    let entries: String = entries
        .into_iter()
        .map(|(class, text)| {
            format!("<span><i class=\"swatch {class}\"></i>{}</span>", escape(&text))
        })
        .collect();
    format!("<p class=\"key\">{entries}</p>")
}

/// The class of one of the hues.
pub(crate) fn hue(number: usize) -> &'static str {
    ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"][number % HUES]
}

/// A layer's place in a strip.
pub(crate) struct StripCell {
    pub(crate) class: &'static str,
    /// How strong its colour is, 0 to 1, if that says something.
    pub(crate) share: Option<f64>,
    pub(crate) about: String,
}

/// A strip of layers, a cell each.
pub(crate) fn strip(num_layers: usize, of: impl Fn(usize) -> StripCell) -> String {
    let cells: String = (0..num_layers)
        .map(|layer| {
            let StripCell { class, share, about } = of(layer);
            let style =
                share.map_or_else(String::new, |share| format!(" style=\"--share:{share:.2}\""));
            format!("<i class=\"{class}\"{style} title=\"layer {layer}: {}\"></i>", escape(&about))
        })
        .collect();
    format!("<div class=\"strip\">{cells}</div>")
}

/// The numbers below strips: every fifth layer's, or every tenth's if there are many.
pub(crate) fn strip_numbers(num_layers: usize) -> String {
    let every = if num_layers > 48 { 10 } else { 5 };
    let cells: String = (0..num_layers)
        .map(|layer| match layer % every {
            0 => format!("<i><b>{layer}</b></i>"),
            _ => "<i></i>".to_owned(),
        })
        .collect();
    format!("<div class=\"strip numbers\" aria-hidden=\"true\">{cells}</div>")
}
