//! The readers, each with its valid files.

use std::path::Path;
use std::sync::Arc;

use checkpoint::{Adapter, Checkpoint, ModelConfig, Module, Record, Weights, bitsandbytes, gguf};
use dataset::{Chat, ChatTemplate, Content, Encoder, Message, Place, Row, read_rows};
use evidence::{Evidence, Need};
use repair::{LinearMaps, Reconstructed, Scales};
use selection::{Criterion, Keep, Plan, PlanSettings, Repair, Scores, Selection, Share};
use serde_json::json;

use crate::dice::Dice;
use crate::form::Form;
use crate::{jinja, mutate, seeds};

/// A valid file, by its name in the target's folder.
pub(crate) struct Seed {
    pub(crate) file: &'static str,
    pub(crate) form: Form,
    /// Whether it is changed, or stands there for the others.
    pub(crate) is_changed: bool,
}

/// What a reader says of its input: nothing, or the message.
type Verdict = Result<(), String>;

/// A reader and its valid files.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    seeds: fn() -> Vec<Seed>,
    /// Reads a folder in which the named file may be broken.
    pub(crate) read: fn(&Path, &str) -> Verdict,
}

/// Every reader.
pub(crate) const TARGETS: [Target; 16] = [
    Target { name: "config", seeds: seeds::configs, read: config },
    Target { name: "safetensors", seeds: seeds::checkpoint, read: safetensors },
    Target { name: "index", seeds: seeds::index, read: safetensors },
    Target { name: "record", seeds: seeds::record, read: record },
    Target { name: "manifest", seeds: seeds::manifest, read: record },
    Target { name: "scores", seeds: seeds::scores, read: scores },
    Target { name: "plan", seeds: seeds::plan, read: plan },
    Target { name: "maps", seeds: seeds::maps, read: maps },
    Target { name: "scales", seeds: seeds::scales, read: scales },
    Target { name: "reconstructed", seeds: seeds::reconstructed, read: reconstructed },
    Target { name: "adapter", seeds: seeds::adapter, read: adapter },
    Target { name: "gguf", seeds: seeds::gguf, read: gguf },
    Target { name: "four-bits", seeds: seeds::four_bits, read: four_bits },
    Target { name: "tokenizer", seeds: seeds::tokenizer, read: tokenizer },
    Target { name: "template", seeds: seeds::template, read: template },
    Target { name: "rows", seeds: seeds::rows, read: rows },
];

/// A target's seeds, ready to be changed.
pub(crate) struct Inputs {
    target: &'static str,
    seed: u64,
    pub(crate) seeds: Vec<Seed>,
    changed: Vec<usize>,
    words: Vec<String>,
}

/// One broken file.
pub(crate) struct Input {
    pub(crate) file: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Target {
    /// The target of this name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    pub(crate) fn inputs(&self, seed: u64) -> Inputs {
        let seeds = (self.seeds)();
        let changed = (0..seeds.len()).filter(|&at| seeds[at].is_changed).collect();
        let mut words: Vec<String> = seeds::WORDS.iter().map(|&word| word.to_owned()).collect();
        for seed in &seeds {
            seed.form.add_words(&mut words);
        }
        if self.name == "template" {
            words.extend(jinja::WORDS.iter().map(|&word| word.to_owned()));
        }
        Inputs { target: self.name, seed, seeds, changed, words }
    }
}

impl Inputs {
    /// The input of a number, always the same.
    pub(crate) fn get(&self, number: u64) -> Option<Input> {
        let mut dice = Dice::new(self.target, self.seed, number);
        let seed = &self.seeds[*dice.pick(&self.changed)?];
        let bytes = if self.target == "template" && dice.percent(50) {
            jinja::template(&mut dice).into_bytes()
        } else {
            mutate::mutate(&seed.form, &self.words, &mut dice)
        };
        Some(Input { file: seed.file, bytes })
    }
}

fn said<T, E: ToString>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn config(folder: &Path, _: &str) -> Verdict {
    let config = said(ModelConfig::read(folder))?;
    let _ = (config.parameters(), config.flops_per_token(1024), config.tensors().len());
    let _ = config.with_layers(&[0]);
    Ok(())
}

fn safetensors(folder: &Path, _: &str) -> Verdict {
    let weights = said(Weights::open(folder))?;
    for view in weights.iter() {
        let _ = (view.shape().len(), view.bytes().len());
        said(view.to_f32())?;
    }
    said(Checkpoint::open(folder)).map(|_| ())
}

fn record(folder: &Path, _: &str) -> Verdict {
    let record = said(Record::open(folder))?;
    said(record.verify())?;
    for criterion in Criterion::all() {
        // What needs more than a record does not find it.
        let mut seen = said(Evidence::of_record(&record, criterion.all_needs()))?;
        if !criterion.needs(Need::Weights) {
            let _ = said(criterion.scores(&mut seen));
        }
    }
    Ok(())
}

fn scores(folder: &Path, file: &str) -> Verdict {
    let scores = said(Scores::read(&folder.join(file)))?;
    let _ = scores.ranking();
    let settings = PlanSettings { repair: Repair::SameSign, merge: 1, density: 0.2.into() };
    let (num_layers, share) = (scores.layers.len(), Share::Percent(40.0));
    let request = said(scores.criterion.request(num_layers, share, Keep::NONE, 0))?;
    let removed = request.first_of(scores.ranking());
    // Not every order of layers can be merged.
    let _ = said(Plan::of(num_layers, &Selection { removed, scores: None }, &settings));
    Ok(())
}

fn plan(folder: &Path, file: &str) -> Verdict {
    let plan = said(Plan::read(&folder.join(file)))?;
    let _ = (plan.retained(), plan.donors(), plan.runs());
    Ok(())
}

fn maps(folder: &Path, _: &str) -> Verdict {
    let maps = said(LinearMaps::open(folder))?;
    for receiver in maps.receivers() {
        let _ = said(maps.matrix(receiver));
    }
    Ok(())
}

fn scales(folder: &Path, _: &str) -> Verdict {
    let scales = said(Scales::open(folder))?;
    let before: Vec<f64> = (0..scales.num_layers).map(|layer| scales.before(layer)).collect();
    assert!(before.iter().all(|factor| factor.is_finite()), "checked factors");
    Ok(())
}

fn reconstructed(folder: &Path, _: &str) -> Verdict {
    let layers = said(Reconstructed::open(folder))?;
    for receiver in layers.receivers() {
        for module in Module::SPLIT {
            let _ = said(layers.weight(receiver, module)).map(|weight| weight.bytes().len());
        }
    }
    Ok(())
}

fn adapter(folder: &Path, _: &str) -> Verdict {
    said(Adapter::read(folder)).map(|_| ())
}

fn gguf(folder: &Path, file: &str) -> Verdict {
    let out = folder.join("out");
    let result = gguf::convert(&folder.join(file), &out, 1 << 30, &mut |_, _| {});
    said(checkpoint::remove_if_there(&out))?;
    said(result).map(|_| ())
}

fn four_bits(folder: &Path, _: &str) -> Verdict {
    let out = folder.join("out");
    let result = bitsandbytes::convert(folder, &out, 1 << 30, &mut |_, _| {});
    said(checkpoint::remove_if_there(&out))?;
    said(result).map(|_| ())
}

fn tokenizer(folder: &Path, _: &str) -> Verdict {
    let encoder = said(Encoder::read(folder))?;
    for text in ["is it so? 12", "", "<|im_start|>user\n\u{1f600} é\0▁ ", &"ab ".repeat(300)] {
        let tokens = said(encoder.tokens(text))?;
        said(encoder.text(&tokens, true))?;
    }
    let _ = said(encoder.text(&[0, 5, u32::MAX], false));
    Ok(())
}

fn template(folder: &Path, file: &str) -> Verdict {
    if file != "chat_template.jinja" {
        // It would be read instead.
        said(checkpoint::remove_if_there(&folder.join("chat_template.jinja")))?;
    }
    let template = said(ChatTemplate::read(folder))?;
    let messages = vec![
        Message::new("system", "be brief"),
        Message::new("user", "is it so?"),
        Message::new("assistant", "yes"),
    ];
    let tools = vec![json!({"name": "look", "parameters": {"type": "object"}})];
    for chat in [Chat { messages: messages.clone(), tools: Vec::new() }, Chat { messages, tools }] {
        said(template.render(&chat, true))?;
    }
    encoded(folder)
}

/// Chats as training and evaluation see them, through the folder's template.
fn encoded(folder: &Path) -> Verdict {
    let encoder = said(Encoder::read(folder))?;
    let place = Place { file: Arc::from(folder), number: 1, is_line: true };
    let row = |chat: Chat| Row { place: place.clone(), content: Content::Chat(chat) };
    let stretches = |chat: Chat| {
        let examples = said(encoder.examples_of(&row(chat), 1000))?;
        examples.iter().try_for_each(|example| said(encoder.stretches(example)).map(|_| ()))
    };
    // A sound template may leave out calls and reasoning, and then such a chat is refused.
    let _ = stretches(called());
    let chat = asked_once();
    stretches(chat.clone())?;
    let choices = vec!["no".to_owned(), "yes".to_owned()];
    let content = Content::Choice { chat, choices, answer: 1 };
    let row = Row { place: place.clone(), content };
    said(encoder.question(&row, 1000)).map(|_| ())
}

/// A question and its answer.
fn asked_once() -> Chat {
    let messages = vec![Message::new("user", "is it so?"), Message::new("assistant", "yes")];
    Chat { messages, tools: Vec::new() }
}

/// A chat with a call that is not learned, what the tool says, and a reply with its reasoning.
fn called() -> Chat {
    let mut call = Message::new("assistant", "");
    call.learned = false;
    let arguments = json!({"at": 1});
    let call_json =
        json!([{"type": "function", "function": {"name": "look", "arguments": arguments}}]);
    call.more.insert("tool_calls".into(), call_json);
    let mut reply = Message::new("assistant", "yes");
    reply.more.insert("reasoning_content".into(), "it is there".into());
    let messages = vec![Message::new("user", "is it so?"), call, Message::new("tool", "1"), reply];
    Chat { messages, tools: vec![json!({"name": "look"})] }
}

fn rows(folder: &Path, file: &str) -> Verdict {
    said(read_rows(&folder.join(file), &[])).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_accepted() {
        for target in &TARGETS {
            let folder = testkit::temporary_folder();
            let seeds = (target.seeds)();
            let write = |seed: &Seed| {
                let bytes = seed.form.pack(&seed.form.render());
                fs_err::write(folder.path().join(seed.file), bytes).unwrap();
            };
            seeds.iter().filter(|seed| !seed.is_changed).for_each(write);
            // The first of each name stands beside the others' files.
            seeds.iter().rev().for_each(write);
            for seed in seeds.iter().filter(|seed| seed.is_changed) {
                write(seed);
                let verdict = (target.read)(folder.path(), seed.file);
                assert_eq!(verdict, Ok(()), "{} {}", target.name, seed.file);
            }
        }
    }

    #[test]
    fn inputs_are_made_again() {
        for target in &TARGETS {
            let (one, other) = (target.inputs(5), target.inputs(5));
            for number in 0..20 {
                let (one, other) = (one.get(number).unwrap(), other.get(number).unwrap());
                assert!(one.file == other.file && one.bytes == other.bytes);
            }
        }
    }
}
