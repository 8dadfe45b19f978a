//! `policy`: a distribution over sets of layers that learns from what sets lose.

use std::collections::BTreeMap;

use evidence::{Evidence, LossProbe, Need};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::selectors::igia::Igia;
use crate::{Request, Result, Scores, Selection, Selector};

/// Rounds of drawing sets and learning from them.
const ROUNDS: usize = 15;
/// Sets of a round.
const DRAWN: usize = 6;
/// How far the log-odds of a layer move in a round in which its going and the loss are perfectly correlated.
const RATE: f64 = 2.0;
/// Log-odds of the layers that `igia` calls the least and the most important, at first.
const FIRST_ODDS: f64 = 2.0;

/// Bernoulli masks of layers, each layer's chance to go learnt by policy gradient from what is lost without the layers
/// of a mask (arXiv 2406.10576), on rows held out of training:
///
/// ```text
/// θ ← Π( θ − η · (1/n) Σ_k (D(S_k) − D̄) / σ · (1[l ∈ S_k] − p_l) ),   p_l = 1 / (1 + e^{−θ_l})
/// ```
///
/// over the `n` sets of a round, with their mean loss `D̄` as baseline and its deviation `σ` as unit. `Π` shifts all
/// log-odds alike until `Σ p` is the number of layers to go, the nearest such point by relative entropy; a drawn mask is
/// brought to that number the same way, by one threshold for all its layers. The odds begin at `igia`'s order.
///
/// What goes is the set that lost least of all that were tried: 6 in each of 15 rounds, `igia`'s own before them and
/// the most likely one after them. That is 92 losses at most, and none is asked for twice. The seed decides the draws.
pub(crate) struct Policy;

impl Selector for Policy {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn about(&self) -> &'static str {
        "removal probabilities, starting from igia and learnt from how much drawn sets lose on held-out rows"
    }

    fn needs(&self) -> &'static [Need] {
        &[Need::Gradients, Need::Loss]
    }

    fn gives_scores(&self) -> bool {
        false
    }

    fn passes(&self, _: usize) -> f64 {
        // Of 92 passes each begins where it leaves the whole model, and lacks the layers that go.
        60.0
    }

    fn scores(&self, _: &mut Evidence<'_>) -> Result<Option<Scores>> {
        Ok(None)
    }

    fn select(&self, seen: &mut Evidence<'_>, request: &Request) -> Result<Selection> {
        // Named as wanted by this rule, not by the other.
        seen.gradients(self.name())?;
        let ranking = Igia.scores(seen)?.as_ref().map(Scores::ranking).unwrap_or_default();
        let layers = request.ordered(ranking);
        let tried = Tried { losses: seen.losses(self.name())?, of: BTreeMap::new() };
        let odds = Odds::of_ranking(layers.len(), request.count);
        let removed = learn(odds, tried, &layers, request)?;
        Ok(Selection { removed, scores: None })
    }
}

/// Learns from drawn sets; returns the best of all, the likeliest layers first. `layers` may go.
fn learn(
    mut odds: Odds,
    mut tried: Tried<'_>,
    layers: &[usize],
    request: &Request,
) -> Result<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(request.seed);
    let set = |places: &[usize]| {
        let mut set: Vec<usize> = places.iter().map(|&place| layers[place]).collect();
        set.sort_unstable();
        set
    };
    tried.loss(set(&odds.likeliest()))?;
    for _ in 0..ROUNDS {
        let drawn: Vec<Vec<usize>> = (0..DRAWN).map(|_| odds.draw(&mut random)).collect();
        let losses =
            drawn.iter().map(|places| tried.loss(set(places))).collect::<Result<Vec<f64>>>()?;
        odds.learn(&drawn, &losses);
    }
    tried.loss(set(&odds.likeliest()))?;
    let best = tried.best();
    Ok(odds.by_chance().map(|place| layers[place]).filter(|layer| best.contains(layer)).collect())
}

/// What sets lost, each asked for once.
struct Tried<'a> {
    losses: &'a mut dyn LossProbe,
    of: BTreeMap<Vec<usize>, f64>,
}

impl Tried<'_> {
    fn loss(&mut self, set: Vec<usize>) -> Result<f64> {
        if let Some(&known) = self.of.get(&set) {
            return Ok(known);
        }
        let lost = self.losses.loss(&set)?;
        self.of.insert(set, lost);
        Ok(lost)
    }

    /// The set that lost least; of equal ones that with the later layers.
    fn best(self) -> Vec<usize> {
        let least = self.of.into_iter().min_by(|x, y| x.1.total_cmp(&y.1).then(y.0.cmp(&x.0)));
        least.map(|(set, _)| set).unwrap_or_default()
    }
}

/// Each candidate's log-odds to go, of which `count` do.
#[derive(Debug, Clone, PartialEq)]
struct Odds {
    log: Vec<f64>,
    count: usize,
}

impl Odds {
    /// From the least important candidate, which is the likeliest to go, to the most important.
    fn of_ranking(candidates: usize, count: usize) -> Self {
        let last = (candidates.max(2) - 1) as f64;
        let log = (0..candidates).map(|at| FIRST_ODDS * (1.0 - 2.0 * at as f64 / last)).collect();
        let mut odds = Self { log, count };
        odds.project();
        odds
    }

    /// Candidates from the likeliest to the least likely to go; of equal ones the first.
    fn by_chance(&self) -> impl Iterator<Item = usize> {
        ordered(&self.log).into_iter()
    }

    fn likeliest(&self) -> Vec<usize> {
        self.by_chance().take(self.count).collect()
    }

    /// A Bernoulli mask: those whose log-odds and logistic noise together exceed a threshold, 0 but for what it takes
    /// to make them `count`.
    fn draw(&self, random: &mut ChaCha8Rng) -> Vec<usize> {
        let noisy: Vec<f64> = self
            .log
            .iter()
            .map(|odds| {
                // In (0, 1).
                let unit = ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
                odds + (unit / (1.0 - unit)).ln()
            })
            .collect();
        ordered(&noisy).into_iter().take(self.count).collect()
    }

    /// One step of policy gradient, and the projection.
    fn learn(&mut self, drawn: &[Vec<usize>], losses: &[f64]) {
        let count = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / count;
        let deviation = (losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt();
        if !(deviation.is_finite() && deviation > 0.0) {
            return;
        }
        let chances: Vec<f64> = self.log.iter().map(|&odds| chance(odds)).collect();
        for (places, loss) in drawn.iter().zip(losses) {
            let advantage = (loss - mean) / deviation;
            for (place, (log, chance)) in self.log.iter_mut().zip(&chances).enumerate() {
                let goes = if places.contains(&place) { 1.0 } else { 0.0 };
                *log -= RATE / count * advantage * (goes - chance);
            }
        }
        self.project();
    }

    /// Shifts all log-odds alike until the chances add up to the number of layers that go.
    fn project(&mut self) {
        if self.count >= self.log.len() {
            return;
        }
        let wanted = self.count as f64;
        let sum = |shift: f64| self.log.iter().map(|odds| chance(odds + shift)).sum::<f64>();
        let (mut low, mut high) = (-1.0, 1.0);
        while sum(low) > wanted {
            low *= 2.0;
        }
        while sum(high) < wanted {
            high *= 2.0;
        }
        // Halved down to rounding.
        for _ in 0..64 {
            let middle = f64::midpoint(low, high);
            if sum(middle) < wanted { low = middle } else { high = middle }
        }
        self.log.iter_mut().for_each(|odds| *odds += high);
    }
}

/// `1 / (1 + e^{−θ})`.
fn chance(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

/// Places from the highest to the lowest value; of equal ones the first.
fn ordered(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&x, &y| values[y].total_cmp(&values[x]).then(x.cmp(&y)));
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use checkpoint::{Module, StepGradients};
    use evidence::GradientNorms;

    use super::*;
    use crate::selectors::tests::Formula;
    use crate::{Keep, Share};

    /// Gradients of layers that `igia` calls the less important the later they stand.
    fn gradients(num_layers: usize) -> GradientNorms {
        let pair = |layer: usize| {
            let matrix = |value| ndarray::Array2::from_elem((1, 1), value);
            let value = (num_layers - layer) as f32;
            ((layer, Module::QProj.into()), StepGradients { a: matrix(1.0), b: matrix(value) })
        };
        let mut norms = GradientNorms::default();
        norms.add(&(0..num_layers).map(pair).collect::<Vec<_>>()).unwrap();
        norms
    }

    fn choose(losses: fn(&[usize]) -> f64, seed: u64) -> (Vec<usize>, Vec<Vec<usize>>) {
        let mut probe = Formula::new(losses);
        let request = Request::new(16, Share::Layers(6), Keep::NONE, seed).unwrap();
        let mut seen = Evidence {
            num_layers: 16,
            gradients: Some(gradients(16)),
            losses: Some(&mut probe),
            ..Evidence::default()
        };
        let found = Policy.select(&mut seen, &request).unwrap().removed;
        (found, probe.asked)
    }

    /// Layers that cost little alone and much side by side, in which `igia`'s order is one run.
    fn apart(set: &[usize]) -> f64 {
        let own: usize = set.iter().map(|layer| 16 - layer).sum();
        let beside = set.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
        (own + 12 * beside) as f64
    }

    #[test]
    fn sets_that_lose_less_than_igias_are_found() {
        let own = apart(&[10, 11, 12, 13, 14, 15]);
        let (mut early, mut late) = (0.0, 0.0);
        for seed in 0..8 {
            let (mut found, asked) = choose(apart, seed);
            assert_eq!(asked[0], [10, 11, 12, 13, 14, 15]);
            let different: BTreeSet<_> = asked.iter().collect();
            assert!(asked.len() <= 92 && different.len() == asked.len());
            found.sort_unstable();
            let lost: Vec<f64> = asked.iter().map(|set| apart(set)).collect();
            let least = lost.iter().copied().fold(f64::INFINITY, f64::min);
            assert_eq!((found.len(), apart(&found)), (6, least));
            // `igia`'s set loses 81, a set drawn by lot 73 on average, the best of all 36.
            assert!(least < 0.65 * own, "seed {seed}: {found:?} loses {least}, {own}");
            early += lost[1..19].iter().sum::<f64>();
            late += lost[lost.len() - 18..].iter().sum::<f64>();
        }
        // Not by luck alone: what is drawn at the end loses less than what was drawn at first.
        assert!(late < 0.93 * early, "{late}, {early}");
        assert_eq!(choose(apart, 3), choose(apart, 3));
        assert_ne!(choose(apart, 3).1, choose(apart, 4).1);
    }

    /// Where `igia` is right, its own set is what goes.
    #[test]
    fn igias_own_set_stays_if_nothing_loses_less() {
        let order = |set: &[usize]| set.iter().map(|layer| 16 - layer).sum::<usize>() as f64;
        let (mut found, _) = choose(order, 1);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn chances_add_up_to_the_budget() {
        for (candidates, count) in [(2, 1), (5, 4), (25, 12)] {
            let mut odds = Odds::of_ranking(candidates, count);
            let sum = |odds: &Odds| odds.log.iter().map(|&x| chance(x)).sum::<f64>();
            assert!((sum(&odds) - count as f64).abs() < 1e-9);
            assert_eq!(odds.likeliest(), (0..count).collect::<Vec<_>>());
            odds.log[0] += 40.0;
            odds.project();
            assert!((sum(&odds) - count as f64).abs() < 1e-9);
        }
    }

    /// One step worked out by hand: two candidates of even odds, two sets, of which the first loses more.
    #[test]
    fn a_step_of_policy_gradient() {
        let mut odds = Odds { log: vec![0.0, 0.0], count: 1 };
        odds.learn(&[vec![0], vec![1]], &[5.0, 3.0]);
        // Advantages 1 and −1: θ_0 = −η/2 · (½ + ½), θ_1 = η/2 · (½ + ½); their chances add up to 1 as they are.
        assert!((odds.log[0] + RATE / 2.0).abs() < 1e-9, "{odds:?}");
        assert!((odds.log[1] - RATE / 2.0).abs() < 1e-9, "{odds:?}");
        let before = odds.clone();
        odds.learn(&[vec![0], vec![1]], &[2.0, 2.0]);
        assert_eq!(odds, before);
    }

    /// Draws follow the odds: of two candidates one goes as often as the difference of their log-odds says.
    #[test]
    fn draws_follow_the_odds() {
        let odds = Odds { log: vec![1.0, -1.0], count: 1 };
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let first = (0..4000).filter(|_| odds.draw(&mut random) == [0]).count() as f64 / 4000.0;
        // P(x > −d) of the difference x of two logistic variables, with d = 2:
        // e^d·(e^d − 1 − d) / (e^d − 1)² = 0.794; five standard errors are 0.032.
        let e = 2.0_f64.exp();
        let expected = e * (e - 3.0) / (e - 1.0).powi(2);
        assert!((first - expected).abs() < 0.032, "{first}, {expected}");
    }
}
