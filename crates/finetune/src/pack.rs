//! Rows packed end to end, without padding.

use dataset::{Example, Question};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Rows of a batch, one after the other in one run of tokens.
///
/// Linears see all tokens at once; attention stays within a row. A row may branch: after a common
/// prompt several continuations follow, each of which sees the prompt and itself.
#[derive(Debug)]
pub(crate) struct Packed {
    /// Token ids, `[n]`.
    pub(crate) tokens: Tensor,
    /// Each token's position in its row (on its branch), `[n]`.
    pub(crate) positions: Vec<i64>,
    /// The rows in order.
    pub(crate) rows: Vec<PackedRow>,
    /// Positions in the pack whose next token is labelled, `[m]`.
    pub(crate) predict: Tensor,
    /// Those next tokens, `[m]`.
    pub(crate) targets: Tensor,
    /// The largest token id.
    pub(crate) largest: i64,
    /// How many tokens are no filling.
    real: usize,
    device: Device,
}

/// libtorch compiles its products anew for every number of tokens it meets, which takes longer than
/// a few tokens too many.
pub(crate) const TOKEN_STEP: usize = 16;

/// One row of a pack.
#[derive(Debug)]
pub(crate) struct PackedRow {
    /// How many tokens it has.
    pub(crate) length: i64,
    /// For each token the branch it is on, 0 being the prompt; empty if nothing branches.
    branches: Vec<i64>,
}

/// Tokens of a row that see the row's first ones and, of their own, those before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowSpan {
    /// How many first ones.
    pub(crate) prompt: usize,
    /// Where in the row its own begin.
    pub(crate) first: usize,
    /// Where they end.
    pub(crate) end: usize,
}

impl Packed {
    /// Packs whole chats; what is labelled is predicted from the token before it.
    pub(crate) fn examples(examples: &[&Example], device: Device) -> Result<Self> {
        Self::rows_of(examples).build(device)
    }

    /// As [`Packed::examples`], with tokens after the last row that nothing sees, up to a multiple
    /// of [`TOKEN_STEP`].
    pub(crate) fn examples_rounded(examples: &[&Example], device: Device) -> Result<Self> {
        Self::rows_of(examples).build_rounded(device)
    }

    fn rows_of(examples: &[&Example]) -> Builder {
        let mut builder = Builder::default();
        for example in examples {
            let first = builder.tokens.len();
            for (position, (&token, &labelled)) in
                example.tokens.iter().zip(&example.labelled).enumerate()
            {
                if labelled {
                    builder.predict.push((first + position - 1) as i64);
                    builder.targets.push(i64::from(token));
                }
                builder.tokens.push(i64::from(token));
                builder.positions.push(position as i64);
            }
            builder.rows.push(PackedRow { length: example.tokens.len() as i64, branches: vec![] });
        }
        builder
    }

    /// Packs multiple-choice rows: a prompt, then its choices side by side; rounded as
    /// [`Packed::examples_rounded`].
    ///
    /// Predicted are the choices' tokens, in order, row by row.
    pub(crate) fn questions(questions: &[&Question], device: Device) -> Result<Self> {
        let mut builder = Builder::default();
        for question in questions {
            let (first, prompt) = (builder.tokens.len(), question.prompt.len());
            let mut branches = vec![0; prompt];
            builder.tokens.extend(question.prompt.iter().map(|&token| i64::from(token)));
            builder.positions.extend(0..prompt as i64);
            for (branch, choice) in question.choices.iter().enumerate() {
                for (within, &token) in choice.iter().enumerate() {
                    builder.predict.push(match within {
                        0 => (first + prompt - 1) as i64,
                        _ => (builder.tokens.len() - 1) as i64,
                    });
                    builder.targets.push(i64::from(token));
                    // A choice's last token predicts nothing, so it need not be computed.
                    if within + 1 < choice.len() {
                        builder.tokens.push(i64::from(token));
                        builder.positions.push((prompt + within) as i64);
                        branches.push(branch as i64 + 1);
                    }
                }
            }
            let length = branches.len() as i64;
            if length == prompt as i64 {
                branches.clear();
            }
            builder.rows.push(PackedRow { length, branches });
        }
        builder.build_rounded(device)
    }

    /// Rows that go on, each from a position with these tokens; each row's last token predicts.
    pub(crate) fn continuations(rows: &[(usize, &[u32])], device: Device) -> Result<Self> {
        let mut builder = Builder::default();
        for &(position, tokens) in rows {
            let length = tokens.len() as i64;
            builder.tokens.extend(tokens.iter().map(|&token| i64::from(token)));
            builder.positions.extend(position as i64..position as i64 + length);
            builder.rows.push(PackedRow { length, branches: vec![] });
            builder.predict.push(builder.tokens.len() as i64 - 1);
            builder.targets.push(0);
        }
        builder.build(device)
    }

    /// How many tokens its rows have.
    pub(crate) fn num_tokens(&self) -> usize {
        self.real
    }

    /// How many tokens are predicted.
    pub(crate) fn num_predicted(&self) -> usize {
        self.targets.numel()
    }

    pub(crate) fn lengths(&self) -> Vec<i64> {
        self.rows.iter().map(|row| row.length).collect()
    }

    /// Where each row's last token stands; filling, which the last row has, is none.
    pub(crate) fn ends(&self) -> Vec<i64> {
        let ends = self.rows.iter().scan(0, |end, row| {
            *end += row.length;
            Some(*end)
        });
        ends.map(|end| end.min(self.real as i64) - 1).collect()
    }

    /// For each row which keys a query sees, where that is more than "all before it": `[L, L]`.
    pub(crate) fn masks(&self, window: Option<usize>) -> Result<Vec<Option<Tensor>>> {
        let mut first = 0;
        self.rows
            .iter()
            .map(|row| {
                let mask = self.mask(row, first, window);
                first += row.length;
                mask
            })
            .collect()
    }

    /// The same for one row, whose first token is the pack's `first`.
    pub(crate) fn mask(
        &self,
        row: &PackedRow,
        first: i64,
        window: Option<usize>,
    ) -> Result<Option<Tensor>> {
        let positions = &self.positions[first as usize..][..row.length as usize];
        row.mask(positions, window, self.device)
    }
}

impl PackedRow {
    /// Whether it branches.
    pub(crate) fn branches(&self) -> bool {
        !self.branches.is_empty()
    }

    /// Its prompt and each of its branches; the row itself if it does not branch.
    pub(crate) fn spans(&self) -> Vec<RowSpan> {
        if self.branches.is_empty() {
            return vec![RowSpan { prompt: 0, first: 0, end: self.length as usize }];
        }
        let prompt = self.branches.iter().take_while(|&&branch| branch == 0).count();
        let mut first = 0;
        let of_one = |run: &[i64]| {
            let (own, begun) = (run.len(), first);
            first += own;
            RowSpan { prompt: if run[0] == 0 { 0 } else { prompt }, first: begun, end: begun + own }
        };
        self.branches.chunk_by(|one, next| one == next).map(of_one).collect()
    }

    fn mask(
        &self,
        positions: &[i64],
        window: Option<usize>,
        device: Device,
    ) -> Result<Option<Tensor>> {
        let window = window.map(|window| window as i64).filter(|&window| window < self.length);
        if self.branches.is_empty() && window.is_none() {
            return Ok(None);
        }
        let column = |tensor: &Tensor| tensor.f_unsqueeze(1);
        let position = Tensor::f_from_slice(positions)?.f_to_device(device)?;
        let order = Tensor::f_arange(self.length, (Kind::Int64, device))?;
        let mut seen = column(&order)?.f_ge_tensor(&order)?;
        if !self.branches.is_empty() {
            let branch = Tensor::f_from_slice(&self.branches)?.f_to_device(device)?;
            let own = column(&branch)?.f_eq_tensor(&branch)?;
            seen = seen.f_logical_and(&own.f_logical_or(&branch.f_eq(0)?)?)?;
        }
        if let Some(window) = window {
            let distance = column(&position)?.f_sub(&position)?;
            seen = seen.f_logical_and(&distance.f_lt(window)?)?;
        }
        Ok(Some(seen))
    }
}

#[derive(Debug, Default)]
struct Builder {
    tokens: Vec<i64>,
    positions: Vec<i64>,
    rows: Vec<PackedRow>,
    predict: Vec<i64>,
    targets: Vec<i64>,
}

impl Builder {
    /// Builds with tokens after the last row, on a branch of their own, that nothing sees.
    fn build_rounded(mut self, device: Device) -> Result<Packed> {
        let real = self.tokens.len();
        if let (Some(row), Some(&last)) = (self.rows.last_mut(), self.positions.last()) {
            let more = real.next_multiple_of(TOKEN_STEP) - real;
            self.tokens.extend(std::iter::repeat_n(0, more));
            self.positions.extend((last + 1..).take(more));
            row.length += more as i64;
            if let Some(&last) = row.branches.last() {
                row.branches.extend(std::iter::repeat_n(last + 1, more));
            }
        }
        Ok(Packed { real, ..self.build(device)? })
    }

    fn build(self, device: Device) -> Result<Packed> {
        let on_device = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(Packed {
            tokens: on_device(&self.tokens)?,
            predict: on_device(&self.predict)?,
            targets: on_device(&self.targets)?,
            largest: self.tokens.iter().chain(&self.targets).copied().max().unwrap_or(0),
            real: self.positions.len(),
            positions: self.positions,
            rows: self.rows,
            device,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::values;
    use crate::{ComputeType, DeviceChoice, Model};

    /// Tokens that nothing sees do not make a row longer: by LongRoPE those of more than 16 are rotated otherwise here.
    #[test]
    fn tokens_behind_the_last_row_turn_nothing() {
        let folder = testkit::fixture("families/phi4_mini");
        let model = Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
        let whole = |tokens: std::ops::Range<u32>| {
            let labelled = (0..tokens.len()).map(|position| position > 0).collect();
            Example::whole(tokens.collect(), labelled)
        };
        let rows = [whole(20..35), whole(3..19)];
        let rows: Vec<&Example> = rows.iter().collect();
        let [plain, rounded] = [Packed::examples, Packed::examples_rounded].map(|pack| {
            let batch = pack(&rows, model.device).unwrap();
            let hidden = model.hidden(&batch, &mut crate::observer::Nobody).unwrap();
            values(&hidden.narrow(0, 0, 31)).unwrap()
        });
        assert!(testkit::relative_deviation(&rounded, &plain) < 1e-6);
    }

    /// Who sees whom by spans is who does by the mask, filling included.
    #[test]
    fn spans_and_masks_agree() {
        let question = |prompt: u32, choices: &[usize]| Question {
            prompt: (0..prompt).collect(),
            choices: choices.iter().map(|&length| vec![7; length]).collect(),
            size_bytes: vec![1; choices.len()],
            reply: vec![1],
            answer: 0,
            cut: 0,
        };
        let questions = [question(5, &[1, 1]), question(9, &[3, 1, 4]), question(2, &[1, 6])];
        let packed = Packed::questions(&questions.each_ref(), Device::Cpu).unwrap();
        let mut first = 0;
        for row in &packed.rows {
            let length = row.length as usize;
            let mut seen = vec![false; length * length];
            for RowSpan { prompt, first, end } in row.spans() {
                for query in first..end {
                    let keys = (0..prompt).chain(first..=query);
                    keys.for_each(|key| seen[query * length + key] = true);
                }
            }
            let mask = packed.mask(row, first, None).unwrap();
            let order = Tensor::arange(row.length, (Kind::Int64, Device::Cpu));
            let mask = mask.unwrap_or_else(|| order.unsqueeze(1).ge_tensor(&order));
            assert_eq!(seen, Vec::<bool>::try_from(mask.view(-1)).unwrap());
            first += row.length;
        }
        assert_eq!(packed.rows.iter().filter(|row| row.branches()).count(), 2);
    }

    /// Choices side by side after one prompt are as likely as each in a row of its own, with and
    /// without a sliding window that the prompt outgrows.
    #[test]
    fn branches_are_rows_of_their_own() {
        for name in ["tiny_llama/model", "families/qwen2_window"] {
            let folder = testkit::fixture(name);
            let model = Model::load(&folder, DeviceChoice::Cpu, ComputeType::F32).unwrap();
            let question = |prompt: std::ops::Range<u32>, choices: &[&[u32]]| Question {
                prompt: prompt.collect(),
                choices: choices.iter().map(|choice| choice.to_vec()).collect(),
                size_bytes: vec![1; choices.len()],
                reply: vec![1],
                answer: 0,
                cut: 0,
            };
            let questions = [
                question(3..12, &[&[20, 21, 22], &[30], &[40, 41]]),
                question(5..9, &[&[7], &[8]]),
            ];
            let packed = Packed::questions(&questions.iter().collect::<Vec<_>>(), model.device);
            let found = values(&model.log_likelihoods(&packed.unwrap()).unwrap()).unwrap();
            let mut expected = Vec::new();
            for question in &questions {
                for choice in &question.choices {
                    let tokens: Vec<u32> = [question.prompt.as_slice(), choice].concat();
                    let labelled = (0..tokens.len()).map(|at| at >= question.prompt.len());
                    let example = Example::whole(tokens, labelled.collect());
                    let packed = Packed::examples(&[&example], model.device).unwrap();
                    expected.extend(values(&model.log_likelihoods(&packed).unwrap()).unwrap());
                }
            }
            assert!(testkit::relative_deviation(&found, &expected) < 1e-5, "{name}");
        }
    }
}
