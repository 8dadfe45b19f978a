//! `report.html`: a run on one self-contained page.

use std::path::Path;

use checkpoint::Staging;
use selection::{Plan, Scores};

use crate::chart::{loss_curves, score_bars};
use crate::run::Evaluations;
use crate::table::cells;
use crate::{Result, RunSettings, comparison, layer_strip, log};

const STYLE: &str = include_str!("report.css");

/// Writes `report.html` of a run's folder: the comparison, the layers, the losses, the settings.
///
/// # Errors
///
/// If a file of the run cannot be read or the report cannot be written.
pub fn write_report(
    folder: &Path,
    settings: &RunSettings,
    scores: Option<&Scores>,
    plan: &Plan,
    evaluations: &Evaluations,
) -> Result<()> {
    let lines = log::read(&folder.join("metrics.jsonl"))?;
    let settings_text = fs_err::read_to_string(folder.join("run.toml"))?;
    let losses = loss_curves(&lines);
    let losses = if losses.is_empty() {
        String::new()
    } else {
        format!(
            "<h2>Training loss</h2><p class=\"key\"><span class=\"tuned\"></span>pruned \
             <span class=\"dense\"></span>dense</p>{losses}"
        )
    };
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>gradpruner: {model}</title><style>{STYLE}</style></head><body>\
         <h1>{model}, {kept} of {all} layers</h1>\
         <p>{strip}</p>\
         <h2>Comparison</h2>{table}{note}\
         {bars}{losses}\
         <h2>Settings</h2><pre>{settings_text}</pre>\
         <footer>gradpruner {version}</footer></body></html>\n",
        model = escape(&settings.model),
        kept = plan.num_layers - plan.pruned.len(),
        all = plan.num_layers,
        strip = escape(&layer_strip(plan)),
        table = table(evaluations),
        note = note(settings, evaluations.rows_trained_on),
        bars = scores.map(|scores| bars(scores, plan)).unwrap_or_default(),
        settings_text = escape(&settings_text),
        version = env!("CARGO_PKG_VERSION"),
    );
    Ok(Staging::write(&folder.join("report.html"), html.as_bytes())?)
}

fn bars(scores: &Scores, plan: &Plan) -> String {
    format!(
        "<h2>Layer scores by {}</h2>\
         <p class=\"key\"><span class=\"kept\"></span>kept <span class=\"pruned\"></span>dropped \
         <span class=\"merged\"></span>merged into the layer before</p>{}",
        scores.criterion.name(),
        score_bars(scores, plan)
    )
}

fn table(evaluations: &Evaluations) -> String {
    let (headings, body) = cells(&comparison(evaluations));
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let head = line("th", &mut headings.iter().copied());
    let rows: String =
        body.iter().map(|row| line("td", &mut row.iter().map(String::as_str))).collect();
    format!("<div class=\"wide\"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>")
}

fn note(settings: &RunSettings, rows_trained_on: usize) -> String {
    let trained = match rows_trained_on {
        0 => "rows never trained on".to_owned(),
        count => format!("<strong>{count} of whose rows were trained on</strong>"),
    };
    match &settings.eval {
        Some(eval) => format!(
            "<p class=\"note\">On {}, {trained}. Accuracy is by log-likelihood of the \
             choices, acc_norm by log-likelihood per byte; perplexity is of the assistant's tokens; \
             intervals are Wilson's, 95 %.</p>",
            escape(&eval.display().to_string())
        ),
        None => {
            "<p class=\"note\">No rows to evaluate on were given (<code>--eval</code>).</p>".into()
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
