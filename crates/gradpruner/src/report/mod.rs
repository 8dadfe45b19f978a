//! `report.html`: a run on one self-contained page.

mod charts;
mod samples;
mod suspects;

use std::path::Path;

use dataset::Row;
use pipeline::{Amount, Race, RunOutcome, Stage, StageTime, Trial};
use repair::MapsHeader;
use selection::{Density, Merge, Plan, Repair, Scores};

use crate::machine::Machine;
use crate::models::{model_rows, model_table, no_better_than_majority};
use crate::page::{StripCell, escape, key, page, strip, strip_numbers};
use crate::stages::{criteria_text, lost_text, stage_text, verdict_text};
use crate::table::Table;
use crate::units::{counted, elapsed_text, layers_named, layers_text, percent};

/// What the page says beside what the run found.
pub(crate) struct Surroundings<'a> {
    /// The text of `run.toml`.
    pub(crate) settings: &'a str,
    /// The commands that were given for the folder, a line each.
    pub(crate) commands: &'a str,
    /// The machine.
    pub(crate) machine: &'a Machine,
    /// The device that was computed on.
    pub(crate) device: &'a str,
    /// The rows that were evaluated on.
    pub(crate) rows: &'a [Row],
}

/// The page.
pub(crate) fn html(found: &RunOutcome, around: &Surroundings<'_>) -> String {
    let RunOutcome { settings, plan, scores, log, evaluations, .. } = found;
    let name = name_of(&found.run);
    let mut body = format!(
        "<h1>{}</h1><p class=\"soft\">{}, fine-tuned on {}</p>{}",
        escape(&name),
        escape(&settings.model),
        escape(&settings.train.display().to_string()),
        lead(found),
    );
    body.push_str(&format!(
        "<h2>Models</h2>{}{}",
        model_table(&model_rows(evaluations)).html(),
        note(found)
    ));
    body.push_str(&layers(plan, found.maps.as_ref()));
    if let Some(verdict) = &found.verdict {
        body.push_str(&format!(
            "<p class=\"note\">The repair: {} (the divergence of the answers and half of the last state's relative \
             error).</p>",
            escape(&verdict_text(verdict))
        ));
    }
    if let Some(amount) = &found.amount {
        body.push_str(&format!("<h2>How many layers</h2>{}", amount_table(amount)));
    }
    if let Some(race) = &found.race {
        body.push_str(&format!("<h2>Candidates</h2>{}", race_table(race)));
    }
    if let Some(scores) = scores {
        let criterion = scores.criterion.name();
        body.push_str(&format!(
            "<h2>Layer scores by <code>{criterion}</code></h2>{}",
            charts::score_bars(scores, plan)
        ));
    }
    let training = charts::training_charts(log, evaluations);
    if !training.is_empty() {
        body.push_str(&format!("<h2>Training</h2>{training}"));
    }
    body.push_str(&samples::samples(evaluations, around.rows));
    body.push_str(&origin(&found.timings, around));
    body.push_str(&format!(
        "<details><summary>Settings</summary><pre>{}</pre></details>",
        escape(around.settings)
    ));
    page(&name, &body)
}

/// The scores, if the layers went by them: where candidates are compared, the winner may be another criterion's.
fn deciding_scores(found: &RunOutcome) -> Option<&Scores> {
    let winner = found.race.as_ref().and_then(|race| race.candidates.first());
    let decided =
        |scores: &&Scores| winner.is_none_or(|winner| winner.criteria.contains(&scores.criterion));
    found.scores.as_ref().filter(decided)
}

/// Every number of layers that was tried, and how the fine-tuned model stood on the rows held out.
fn amount_table(amount: &Amount) -> String {
    let Amount { max_drop, layers, dense, tried } = amount;
    let mut table = Table::new(["layers removed", "on the rows held out", "against dense"]);
    table.add(vec!["0".into(), figures_of_trial(dense), "–".into()], "");
    let mut tried: Vec<_> = tried.iter().collect();
    tried.sort_by_key(|tried| tried.layers);
    for one in tried {
        let taken = if one.layers == *layers { " (taken)" } else { "" };
        let name = format!("{}{taken}", one.layers);
        table.add(vec![name, figures_of_trial(&one.trial), lost_text(one.lost, dense)], "");
    }
    format!(
        "{}<p class=\"note\">Mean loss (and accuracy, of rows with choices) on the rows held out by <code>--choose</code>, each \
         model fully fine-tuned. <code>--max-drop {max_drop}</code> takes the largest number that loses no more; the rows of \
         <code>--eval</code> have no part in it.</p>",
        table.html()
    )
}

/// Every candidate, the winner first: the layers it removes, and its loss by the steps it had trained.
fn race_table(race: &Race) -> String {
    let mut steps: Vec<usize> = race
        .candidates
        .iter()
        .flat_map(|candidate| candidate.trials.iter().map(|trial| trial.step))
        .collect();
    steps.sort_unstable();
    steps.dedup();
    let heads = ["chosen by".to_owned(), "layers removed".to_owned()].into_iter();
    let heads: Vec<String> =
        heads.chain(steps.iter().map(|step| format!("after step {step}"))).collect();
    let mut table = Table::new(heads.iter().map(String::as_str));
    for candidate in &race.candidates {
        let at = |step: &usize| {
            let trial = candidate.trials.iter().find(|trial| trial.step == *step);
            trial.map_or_else(|| "–".to_owned(), figures_of_trial)
        };
        let names = [criteria_text(&candidate.criteria), layers_text(&candidate.pruned)];
        table.add(names.into_iter().chain(steps.iter().map(at)).collect(), "");
    }
    let collapsed = match race.collapsed {
        true => {
            " A quarter of the way through training, no candidate was clearly better than the most frequent answer."
        }
        false => "",
    };
    format!(
        "{}<p class=\"note\">Mean loss (and accuracy, of rows with choices) on the rows held out by <code>--choose</code>; a \
         dash where a candidate was not trained that far.{collapsed}</p>",
        table.html()
    )
}

fn figures_of_trial(trial: &Trial) -> String {
    let loss = trial.loss.map_or_else(|| "not finite".to_owned(), |loss| format!("{loss:.4}"));
    let accuracy = trial.acc.map_or_else(String::new, |share| format!(" ({})", percent(share)));
    format!("{loss}{accuracy}")
}

/// The folder's name, whatever path leads to it.
fn name_of(run: &Path) -> String {
    let whole = std::path::absolute(run).unwrap_or_else(|_| run.to_owned());
    let whole = fs_err::canonicalize(&whole).unwrap_or(whole);
    whole.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

/// What came out, in a sentence or two; and what to suspect if that is no better than the most frequent answer.
fn lead(found: &RunOutcome) -> String {
    let RunOutcome { plan, evaluations, .. } = found;
    let (dense, pruned) = evaluations.sizes;
    let less = |after: u64, before: u64| percent(1.0 - after as f64 / before as f64);
    let mut text = format!(
        "{} of {} layers are left, with {} fewer parameters and {} fewer FLOPs per token.",
        pruned.num_layers,
        dense.num_layers,
        less(pruned.parameters, dense.parameters),
        less(pruned.flops_per_token, dense.flops_per_token),
    );
    let accuracy = |report: &Option<finetune::EvalReport>| report.as_ref()?.acc;
    if let Some(tuned) = accuracy(&evaluations.pruned_tuned) {
        text.push_str(&format!(
            " Fine-tuned, the pruned model is right on {} of the rows",
            percent(tuned)
        ));
        match (accuracy(&evaluations.dense_tuned), accuracy(&evaluations.dense)) {
            (Some(dense), _) => text.push_str(&format!(
                "; the dense model, fine-tuned the same way, on {}.",
                percent(dense)
            )),
            (None, Some(dense)) => {
                text.push_str(&format!(
                    "; the dense model, not fine-tuned, on {}.",
                    percent(dense)
                ));
            }
            (None, None) => text.push('.'),
        }
    }
    let mut html = format!("<p class=\"lead\">{}</p>", escape(&text));
    if let Some(majority) = evaluations.pruned_tuned.as_ref().and_then(no_better_than_majority) {
        let suspects: String =
            suspects::suspects(plan, deciding_scores(found), found.maps.as_ref())
                .iter()
                .map(|suspect| format!("<li>{}</li>", escape(suspect)))
                .collect();
        html.push_str(&format!(
            "<div class=\"warning\"><p><strong>The result may be no better than always giving the most frequent \
             answer</strong>, which is right on {}. Train longer or on more rows, raise <code>--lr</code>, or prune fewer \
             layers.</p>{}</div>",
            percent(majority),
            match suspects.is_empty() {
                true => String::new(),
                false => format!("<p>Layers to suspect:</p><ul>{suspects}</ul>"),
            }
        ));
    }
    html
}

/// What the figures of the table are.
fn note(found: &RunOutcome) -> String {
    let Some(eval) = &found.settings.eval else {
        return "<p class=\"note\">No rows to evaluate on were given (<code>--eval</code>).</p>"
            .into();
    };
    let trained = match found.evaluations.rows_trained_on {
        0 => "rows never trained on".to_owned(),
        count => format!("<strong>{count} of whose rows were trained on</strong>"),
    };
    format!(
        "<p class=\"note\">On {}, {trained}. Accuracy is by log-likelihood of the choices, acc_norm by log-likelihood \
         per byte; perplexity is of the assistant's tokens; intervals are Wilson's, 95 %.</p>",
        escape(&eval.display().to_string())
    )
}

/// Which layers went, and what was done to the others.
fn layers(plan: &Plan, maps: Option<&MapsHeader>) -> String {
    let donors = plan.donors();
    let state = |layer: usize| {
        let (class, about) = match layer {
            _ if donors.contains(&layer) => ("merged", "merged into the layer before"),
            _ if plan.pruned.contains(&layer) => ("gone", "removed"),
            _ => ("kept", "kept"),
        };
        StripCell { class, share: None, about: about.into() }
    };
    let count = |donated: bool| {
        plan.pruned.iter().filter(|layer| donors.contains(layer) == donated).count()
    };
    let kept = plan.num_layers - plan.pruned.len();
    let mut entries =
        vec![("kept", format!("{kept} kept")), ("gone", format!("{} removed", count(false)))];
    if !donors.is_empty() {
        entries.push(("merged", format!("{} merged into the layer before", count(true))));
    }
    format!(
        "<h2>Layers</h2>{}{}{}<p>Removed: {}.</p>{}",
        key(entries),
        strip(plan.num_layers, state),
        strip_numbers(plan.num_layers),
        layers_text(&plan.pruned),
        repair(plan, maps)
    )
}

fn repair(plan: &Plan, maps: Option<&MapsHeader>) -> String {
    match (plan.repair(), maps) {
        (Repair::Drop, _) => "<p>Repair: <code>drop</code>. The layers that stay were left as they are.</p>".into(),
        (Repair::SameSign, _) => {
            let into = |merge: &Merge| {
                format!("{} into layer {}", layers_named(&merge.from), merge.into)
            };
            let merges: Vec<String> = plan.merges.iter().map(into).collect();
            let kept = match plan.density {
                Density::Share(share) => {
                    format!("The most important {} of each merged weight", percent(share))
                }
                Density::Auto(share) => format!(
                    "Of each merged weight the fewest elements that hold {} of its importance",
                    percent(share)
                ),
            };
            format!(
                "<p>Repair: <code>same-sign</code>. {kept} went into the layer before, where the signs agree: {}.</p>",
                merges.join("; ")
            )
        }
        (Repair::LinearMap, None) => {
            "<p>Repair: <code>linear-map</code>. A map stands in for each run of removed layers.</p>".into()
        }
        (Repair::LinearMap, Some(maps)) => {
            let mut table = Table::new(["removed", "map in layer", "error before", "error after", "explained"]);
            for run in &maps.runs {
                let layers: Vec<usize> = (run.first..=run.last).collect();
                let cells = vec![
                    layers_text(&layers),
                    run.receiver.to_string(),
                    format!("{:.3}", run.error_before),
                    format!("{:.3}", run.error_after),
                    percent(1.0 - run.error_after / run.error_before.max(f64::MIN_POSITIVE)),
                ];
                table.add(cells, "");
            }
            format!(
                "<p>Repair: <code>linear-map</code>. A map stands in for each run of removed layers, fitted on {} and \
                 folded into the layer before it.</p>{}<p class=\"note\">Error: the squared distance from the run's output \
                 in the dense model, relative to that output's square, without and with the map.</p>",
                counted(maps.tokens, "token"),
                table.html()
            )
        }
        (other, _) => format!("<p>Repair: <code>{other}</code>: {}.</p>", other.about()),
    }
}

/// How long it took, on what, and by which command.
fn origin(timings: &[StageTime], around: &Surroundings<'_>) -> String {
    let Surroundings { commands, machine, device, .. } = around;
    let mut html = String::from("<h2>Time, machine and command</h2>");
    if !timings.is_empty() {
        let mut table = Table::new(["stage", "wall time"]);
        for time in timings {
            table.add(vec![stage_name(&time.name), wall_text(time.seconds)], "");
        }
        let all = timings.iter().map(|time| time.seconds).sum();
        table.add(vec!["all".into(), wall_text(all)], "best");
        html.push_str(&table.html());
    }
    let mut facts = vec![("machine", machine.text())];
    if device.starts_with("cuda") {
        let gpus = match machine.gpus.as_slice() {
            [] => (*device).to_owned(),
            gpus => format!("{device}, of {}", gpus.join(", ")),
        };
        facts.push(("GPU", gpus));
    } else {
        facts.push(("computed on", (*device).to_owned()));
    }
    facts.push(("version", format!("gradpruner {}", env!("CARGO_PKG_VERSION"))));
    let facts: String = facts
        .iter()
        .map(|(name, fact)| format!("<tr><th>{name}</th><td>{}</td></tr>", escape(fact)))
        .collect();
    html.push_str(&format!("<table class=\"facts\"><tbody>{facts}</tbody></table>"));
    if !commands.is_empty() {
        html.push_str(&format!("<pre class=\"command\">{}</pre>", escape(commands.trim_end())));
    }
    html
}

/// A stage as people call it, by what it leaves.
fn stage_name(result: &str) -> String {
    let stage = match result {
        "trial" => return "look at the model a quarter in".into(),
        "record" => Some(Stage::Collect),
        "selection" => Some(Stage::Score),
        "maps" => Some(Stage::Fit),
        "pruned" => Some(Stage::Prune),
        "adapter" | "tuned" => Some(Stage::Finetune),
        "dense-adapter" | "dense-tuned" => Some(Stage::DenseFinetune),
        other => serde_json::from_value(other.into()).ok(),
    };
    stage.map_or_else(|| result.replace('-', " "), |stage| stage_text(stage).to_owned())
}

/// Seconds, with a digit more where they are few.
fn wall_text(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1} s") } else { elapsed_text(seconds.round() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_called_by_its_folder() {
        let folder = testkit::temporary_folder();
        let run = folder.path().join("my run");
        fs_err::create_dir_all(run.join("record")).unwrap();
        assert_eq!(name_of(&run), "my run");
        assert_eq!(name_of(&run.join("record/..")), "my run");
    }

    #[test]
    fn stages_are_named_and_timed() {
        assert_eq!(stage_name("dense-adapter"), "fine-tune dense");
        assert_eq!(stage_name("evaluate-tuned"), "evaluate pruned, tuned");
        assert_eq!(stage_name("something-else"), "something else");
        assert_eq!(stage_name("trial"), "look at the model a quarter in");
        assert_eq!([0.26, 75.4].map(wall_text), ["0.3 s", "1 min 15 s"]);
        let machine =
            Machine { cpu: None, cores: 2, memory_bytes: None, gpus: vec!["Big GPU".into()] };
        let around = |device| Surroundings {
            settings: "",
            commands: "gradpruner run --out 'a b'\n",
            machine: &machine,
            device,
            rows: &[],
        };
        let time = |name: &str, seconds| StageTime { name: name.into(), seconds };
        let html = origin(&[time("record", 30.0), time("pruned", 40.0)], &around("cuda:0"));
        assert!(html.contains("<td>all</td><td>1 min 10 s</td>"), "{html}");
        assert!(html.contains("<td>cuda:0, of Big GPU</td>"), "{html}");
        assert!(html.contains("gradpruner run --out 'a b'"), "{html}");
        let html = origin(&[], &around("cpu"));
        assert!(!html.contains("wall time") && !html.contains("Big GPU"), "{html}");
    }
}
