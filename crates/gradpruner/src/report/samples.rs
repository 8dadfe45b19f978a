//! A few evaluated rows, with what each model answered.

use dataset::{Content, Row};
use finetune::{Answer, EvalReport};
use pipeline::Evaluations;

use crate::page::escape;

/// How many rows are shown.
const ROWS: usize = 5;
/// Characters of a text at most.
const MOST_CHARACTERS: usize = 700;

/// The section: replies beside their references if any were generated, else the choices' log-likelihoods.
pub(super) fn samples(evaluations: &Evaluations, rows: &[Row]) -> String {
    let replies = generated(evaluations, rows);
    if !replies.is_empty() {
        return format!("<h2>Replies to the first rows</h2>{replies}");
    }
    let choices = choices(evaluations, rows);
    if choices.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Answers to the first rows</h2><p class=\"note\">The log-likelihood of each choice, the likeliest in bold; the \
         right one is marked ✓.</p>{choices}"
    )
}

fn generated(evaluations: &Evaluations, rows: &[Row]) -> String {
    let Evaluations { dense, dense_tuned, pruned_tuned, pruned, .. } = evaluations;
    // A model that was pruned and not tuned yet says nothing worth reading if there is one that was.
    let pruned = if pruned_tuned.is_some() { &None } else { pruned };
    let models = [
        ("dense, zero-shot", dense),
        ("dense, fine-tuned", dense_tuned),
        ("pruned, not tuned", pruned),
        ("pruned, fine-tuned", pruned_tuned),
    ];
    let Some(first) = models.iter().find_map(|(_, report)| report.as_ref()) else {
        return String::new();
    };
    first
        .generated
        .iter()
        .take(ROWS)
        .map(|reply| {
            let of = |report: &Option<EvalReport>| {
                let replies = report.iter().flat_map(|report| &report.generated);
                replies.clone().find(|other| other.row == reply.row).map(|reply| reply.text.clone())
            };
            let said: String = models
                .iter()
                .filter_map(|(name, report)| Some(entry(name, &of(report)?)))
                .collect();
            format!(
                "<div class=\"sample\">{}<dl>{}{said}</dl></div>",
                question(rows, reply.row),
                entry("reference", &reply.reference)
            )
        })
        .collect()
}

fn entry(name: &str, text: &str) -> String {
    format!("<dt>{name}</dt><dd>{}</dd>", escape(&shortened(text)))
}

fn choices(evaluations: &Evaluations, rows: &[Row]) -> String {
    let answers = &evaluations.answers;
    let models: Vec<(&str, &[Answer])> = [
        ("dense, zero-shot", answers.dense.as_slice()),
        ("dense, fine-tuned", &answers.dense_tuned),
        ("pruned, not tuned", &answers.pruned),
        ("pruned, fine-tuned", &answers.pruned_tuned),
    ]
    .into_iter()
    .filter(|(_, answers)| !answers.is_empty())
    .collect();
    let Some((_, first)) = models.first() else { return String::new() };
    first
        .iter()
        .take(ROWS)
        .filter_map(|answer| {
            let Content::Choice { choices, .. } = &rows.get(answer.row.checked_sub(1)?)?.content
            else {
                return None;
            };
            let of_row: Vec<(&str, &Answer)> = models
                .iter()
                .filter_map(|(name, answers)| {
                    Some((*name, answers.iter().find(|other| other.row == answer.row)?))
                })
                .collect();
            Some(format!(
                "<div class=\"sample\">{}{}</div>",
                question(rows, answer.row),
                likelihoods(choices, answer.answer, &of_row)
            ))
        })
        .collect()
}

fn likelihoods(choices: &[String], right: usize, models: &[(&str, &Answer)]) -> String {
    let headings: String = models.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
    let body: String = choices
        .iter()
        .enumerate()
        .map(|(number, choice)| {
            let cells: String = models
                .iter()
                .map(|(_, answer)| {
                    let value = answer.log_likelihoods.get(number);
                    let text = value.map_or_else(|| "–".into(), |x| format!("{x:.2}"));
                    let class = if answer.chosen == number { " class=\"chosen\"" } else { "" };
                    format!("<td{class}>{}</td>", text.replace('-', "−"))
                })
                .collect();
            let (class, mark) =
                if number == right { (" class=\"right\"", " ✓") } else { ("", "") };
            format!("<tr{class}><td>{}{mark}</td>{cells}</tr>", escape(&shortened(choice)))
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr><th>choice</th>{headings}</tr></thead><tbody>{body}</tbody></table></div>"
    )
}

/// What a row asks: the turn before the reply.
fn question(rows: &[Row], number: usize) -> String {
    let row = number.checked_sub(1).and_then(|at| rows.get(at));
    let chat = match row.map(|row| &row.content) {
        Some(Content::Chat(chat) | Content::Choice { chat, .. }) => chat,
        Some(Content::Text(_)) | None => return String::new(),
    };
    let asked = chat.messages.iter().rev().nth(1).map_or("", |message| message.text());
    format!("<p class=\"ask\">{}</p>", escape(&shortened(asked)))
}

/// A text's beginning, if it is long.
fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{} …", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rows(lines: &[Value]) -> Vec<Row> {
        let folder = testkit::temporary_folder();
        let path = folder.path().join("rows.jsonl");
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        fs_err::write(&path, lines.join("\n")).unwrap();
        dataset::read_rows(&path, &[]).unwrap()
    }

    /// Evaluations of which only this is known.
    fn evaluations(more: Value) -> Evaluations {
        let size = json!({"num_layers": 1, "parameters": 1, "flops_per_token": 2, "size_bytes": 4});
        let mut all = json!({
            "format": "gradpruner-evaluations", "version": 1, "sizes": [size, size], "rows_trained_on": 0,
        });
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn said(text: &str) -> Value {
        json!({
            "rows": 1, "labelled_tokens": 9, "tokens": 9, "seconds": 1.0, "tokens_per_second": 9.0,
            "parameters": 1, "flops_per_token": 2, "num_layers": 3,
            "generated": [{"row": 2, "text": text, "reference": "four"}],
        })
    }

    #[test]
    fn replies_stand_beside_their_reference() {
        let row = |asked: &str| json!({"prompt": asked, "completion": "x"});
        let rows = rows(&[row("no"), row("two & two?")]);
        let long = "y".repeat(MOST_CHARACTERS + 1);
        let found = evaluations(json!({
            "dense": said("<five>"), "pruned": said("unseen"), "pruned_tuned": said(&long),
        }));
        let html = samples(&found, &rows);
        let shown = format!("<dd>{} …</dd>", "y".repeat(MOST_CHARACTERS));
        for part in [
            "two &amp; two?",
            "<dd>four</dd>",
            "<dt>dense, zero-shot</dt><dd>&lt;five&gt;</dd>",
            &shown,
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("unseen"), "{html}");
    }

    #[test]
    fn choices_stand_with_their_likelihoods() {
        let rows = rows(&[json!({"question": "so?", "choices": ["no", "yes"], "answer": "yes"})]);
        let answer = |of: [f64; 2], chosen: usize| {
            json!([{"row": 1, "log_likelihoods": of, "chosen": chosen, "chosen_by_bytes": chosen, "answer": 1,
                    "right": chosen == 1}])
        };
        let answers = json!({
            "dense": answer([-1.5, -2.0], 0), "dense_tuned": [], "pruned": [],
            "pruned_tuned": answer([-3.0, -0.25], 1),
        });
        let html = samples(&evaluations(json!({"answers": answers})), &rows);
        for part in [
            "<p class=\"ask\">so?</p>",
            "<th>choice</th><th>dense, zero-shot</th><th>pruned, fine-tuned</th>",
            "<tr><td>no</td><td class=\"chosen\">−1.50</td><td>−3.00</td></tr>",
            "<tr class=\"right\"><td>yes ✓</td><td>−2.00</td><td class=\"chosen\">−0.25</td></tr>",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        // Rows that are not there any more are left out.
        assert!(!samples(&evaluations(json!({"answers": answers})), &[]).contains("sample\""));
        assert_eq!(samples(&evaluations(json!({})), &rows), "");
    }
}
