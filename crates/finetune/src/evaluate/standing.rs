//! How a model stands in the middle of its training.

use collective::Group;
use metrics::{Interval, wilson};
use serde::{Deserialize, Serialize};
use tch::no_grad_guard;

use super::rows::EvalRows;
use super::tally::Tally;
use crate::{FinetuneError, Model, Result};

/// A model's figures on held-out rows: what races and early warnings go by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Rows with choices.
    pub questions: usize,
    /// The share of these whose likeliest choice is the right one.
    pub acc: Option<f64>,
    /// Its 95 % interval (Wilson's).
    pub acc_interval: Option<Interval>,
    /// What always answering the most frequent position would get.
    pub majority: Option<f64>,
    /// The mean negative log-likelihood of the assistant's tokens, in nats; `None` if there are none.
    pub loss: Option<f64>,
    /// How many those are.
    pub labelled_tokens: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// How a model stands on held-out rows: one forward pass, nothing generated, nothing written. The model may be one
/// that trains ([`Trainer::model`](crate::Trainer::model)); nothing of it changes.
///
/// `batch_tokens`: tokens of a forward pass, at least one row. `observe` sees how many examples and questions are
/// done.
///
/// # Errors
///
/// [`FinetuneError::NotANumber`](crate::FinetuneError::NotANumber) if the model overflows;
/// [`FinetuneError::StoppedUnsaved`](crate::FinetuneError::StoppedUnsaved) if asked to stop; if libtorch refuses.
pub fn standing(
    model: &Model,
    rows: &EvalRows,
    batch_tokens: usize,
    observe: &mut dyn FnMut(usize),
) -> Result<Standing> {
    let _guard = no_grad_guard();
    let mut tally = Tally::default();
    tally.see(model, rows, batch_tokens, observe)?;
    Ok(Standing::of(&tally))
}

/// As [`standing`], in all processes of a group together: each takes its share of the rows, and all find the same.
///
/// # Errors
///
/// As [`standing`], in all processes where it is in one; if a process is gone.
pub(crate) fn standing_together(
    group: &Group,
    model: &Model,
    rows: &EvalRows,
    batch_tokens: usize,
    observe: &mut dyn FnMut(usize),
) -> Result<Standing> {
    let _guard = no_grad_guard();
    let mut tally = Tally::default();
    let own = rows.share(group.rank(), group.size());
    let mut observe = |done: usize| observe(done * group.size());
    // What only this process finds, the others must know of: they wait for its figures.
    let (stopped, overflowed) = match tally.see(model, &own, batch_tokens, &mut observe) {
        Ok(()) => (0.0, 0.0),
        Err(FinetuneError::StoppedUnsaved) => (1.0, 0.0),
        Err(FinetuneError::NotANumber) => (0.0, 1.0),
        Err(error) => return Err(error),
    };
    tally.positions.resize(rows.most_choices(), 0);
    let counts = [tally.asked, tally.hits, tally.labelled, tally.tokens];
    let counts = counts.iter().chain(&tally.positions).map(|&count| count as f64);
    let own = [stopped, overflowed, tally.negative_log_likelihood].into_iter().chain(counts);
    let sums = group.sum(own.collect())?;
    let &[stopped, overflowed, negative_log_likelihood, ref counts @ ..] = sums.as_slice() else {
        return Ok(Standing::of(&tally));
    };
    if stopped > 0.0 {
        return Err(FinetuneError::StoppedUnsaved);
    }
    if overflowed > 0.0 {
        return Err(FinetuneError::NotANumber);
    }
    let mut counts = counts.iter().map(|&count| count as usize);
    let mut next = || counts.next().unwrap_or(0);
    let (asked, hits, labelled, tokens) = (next(), next(), next(), next());
    let positions = counts.collect();
    let of_all = Tally {
        asked,
        hits,
        positions,
        negative_log_likelihood,
        labelled,
        tokens,
        ..Tally::default()
    };
    Ok(Standing::of(&of_all))
}

impl Standing {
    fn of(tally: &Tally) -> Self {
        let asked = tally.asked;
        let share = |hits: usize| (asked > 0).then(|| hits as f64 / asked as f64);
        Self {
            questions: asked,
            acc: share(tally.hits),
            acc_interval: (asked > 0).then(|| wilson(tally.hits, asked)),
            majority: share(tally.positions.iter().copied().max().unwrap_or(0)),
            loss: (tally.labelled > 0)
                .then(|| tally.negative_log_likelihood / tally.labelled as f64),
            labelled_tokens: tally.labelled,
            tokens: tally.tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use dataset::{Example, Question};

    use super::*;
    use crate::bridge::values;
    use crate::pack::Packed;
    use crate::train::tests::{golden_model, lora, rows, settings, weights_of};
    use crate::{EvalSettings, Trainer};

    fn question(number: u32) -> Question {
        let choices = vec![vec![30 + number, 31], vec![50], vec![70, 71, 72 + number]];
        let answer = (number % 3 % 2) as usize;
        let reply = [choices[answer].as_slice(), &[2]].concat();
        let (prompt, size_bytes) = ((3..9 + number).collect(), vec![1; 3]);
        Question { prompt, choices, size_bytes, reply, answer, cut: 0 }
    }

    /// Each choice in a row of its own, and plain counting.
    #[test]
    fn figures_are_what_rows_alone_give() {
        let model = golden_model("tiny_llama");
        let questions: Vec<Question> = (0..10).map(question).collect();
        let examples = rows("tiny_llama").examples;
        let log_likelihood = |prompt: &[u32], reply: &[u32]| -> f64 {
            let tokens = [prompt, reply].concat();
            let labelled = (0..tokens.len()).map(|at| at >= prompt.len()).collect();
            let packed = Packed::examples(&[&Example::whole(tokens, labelled)], model.device);
            let found = values(&model.log_likelihoods(&packed.unwrap()).unwrap()).unwrap();
            found.iter().map(|&x| f64::from(x)).sum()
        };
        let (mut hits, mut positions, mut loss, mut labelled) = (0, [0; 3], 0.0, 0);
        for Question { prompt, choices, reply, answer, .. } in &questions {
            let found: Vec<f64> =
                choices.iter().map(|reply| log_likelihood(prompt, reply)).collect();
            let best = (0..3).max_by(|&i, &j| found[i].total_cmp(&found[j])).unwrap();
            hits += usize::from(best == *answer);
            positions[*answer] += 1;
            loss -= log_likelihood(prompt, reply);
            labelled += reply.len();
        }
        for example in &examples {
            let packed = Packed::examples(&[example], model.device).unwrap();
            let found = values(&model.log_likelihoods(&packed).unwrap()).unwrap();
            loss -= found.iter().map(|&x| f64::from(x)).sum::<f64>();
            labelled += example.learned();
        }
        let rows = EvalRows::new(questions, examples);
        for batch_tokens in [1, 60, usize::MAX] {
            let found = standing(&model, &rows, batch_tokens, &mut |_| {}).unwrap();
            assert_eq!(found.questions, 10);
            assert_eq!(found.acc, Some(hits as f64 / 10.0));
            assert_eq!(found.majority, positions.iter().max().map(|&most| f64::from(most) / 10.0));
            assert_eq!(found.acc_interval, Some(wilson(hits, 10)));
            assert_eq!(found.labelled_tokens, labelled);
            let mean = loss / labelled as f64;
            assert!((found.loss.unwrap() / mean - 1.0).abs() < 1e-5);
        }
        let bare = standing(&model, &EvalRows::new(vec![], vec![]), 60, &mut |_| {}).unwrap();
        assert_eq!((bare.acc, bare.loss, bare.majority), (None, None, None));
    }

    /// As the whole evaluation of the same rows.
    #[test]
    fn figures_are_the_evaluations() {
        let folder = testkit::temporary_folder();
        let at = folder.path().join("model");
        testkit::tiny_checkpoint(&at);
        let path = folder.path().join("rows.jsonl");
        fs_err::write(&path, testkit::tiny_rows(0..12)).unwrap();
        let rows = dataset::read_rows(&path, &[]).unwrap();
        let encoder = dataset::Encoder::read(&at).unwrap();
        let device = crate::DeviceChoice::Cpu;
        let model = Model::load(&at, device, crate::ComputeType::F32).unwrap();
        let settings =
            EvalSettings { batch_tokens: 200, max_tokens: 64, generate_rows: 0, max_new_tokens: 1 };
        let data = crate::EvalData { encoder: &encoder, rows: &rows };
        let whole = crate::evaluate(&model, data, &settings, &mut |_| {}).unwrap().report;
        let encoded = EvalRows::encode(&encoder, &rows, 64).unwrap();
        let found = standing(&model, &encoded, 200, &mut |_| {}).unwrap();
        assert_eq!((encoded.len(), found.questions), (12, 12));
        assert_eq!((found.acc, found.acc_interval), (whole.acc, whole.acc_interval));
        assert_eq!((found.majority, found.tokens), (whole.majority, whole.tokens));
        assert!((found.loss.unwrap().exp() / whole.perplexity.unwrap() - 1.0).abs() < 1e-12);
    }

    /// A look in the middle of a training changes none of its bits, and sees what the training has done by then.
    #[test]
    fn a_look_changes_nothing() {
        let data = rows("tiny_llama");
        let held_out = EvalRows::new(vec![], data.examples.clone());
        let trainer = || Trainer::new(golden_model("tiny_llama"), settings(lora()), data.clone());
        let mut whole = trainer().unwrap();
        whole.run(None, None, &mut |_| {}).unwrap();
        let mut looked_at = trainer().unwrap();
        let mut losses = Vec::new();
        for step in [0, 3, 6, usize::MAX] {
            looked_at.run_until(step, None, &mut |_| {}).unwrap();
            let found = standing(looked_at.model(), &held_out, 60, &mut |_| {}).unwrap();
            losses.push(found.loss.unwrap());
        }
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
        assert_eq!(weights_of(looked_at.model()), weights_of(whole.model()));
    }
}
