//! Settings that stand for many flags: `run --config FILE`, another run's, and `--paper`, the paper's. They stand before the
//! flags that were typed.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use clap::Parser;
use finetune::DistilSettings;
use pipeline::{
    EvaluationSettings, FinetuneMethod, RunSettings, TeacherSettings, TrainingSettings,
    ValidationSettings,
};

use crate::Cli;
use crate::command_line::command_text;
use crate::commands::Command;

/// The flags that `--paper` stands for: [`RunSettings::in_the_papers_form`], and its three epochs.
const PAPER: [&str; 9] = [
    "--criterion=igia",
    "--keep=none",
    "--refine=none",
    "--repair=same-sign",
    "--merge=3",
    "--density=0.2",
    "--repair-always",
    "--restart",
    "--epochs=3",
];

/// The command line with the settings of the run.toml that it names, if it names one, and those of `--paper` written out as
/// flags. They stand before what was typed, and of a flag that stands there twice the later wins.
pub(crate) fn expanded(typed: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    // The command is the first word that is no flag, after the program; no flag before it takes a value. What follows may be
    // called the same: `--out run`.
    let is_flag = |word: &OsString| word.to_string_lossy().starts_with('-');
    let Some(command) = (1..typed.len()).find(|&at| !is_flag(&typed[at])) else { return Ok(typed) };
    if typed[command] != "run" && typed[command] != "estimate" {
        return Ok(typed);
    }
    let (before, after) = typed.split_at(command + 1);
    let mut settings = Vec::new();
    if let Some(path) = value_of(after, &["--config"]) {
        let read = RunSettings::read(Path::new(&path))
            .with_context(|| format!("cannot use --config `{}`", Path::new(&path).display()))?;
        let typed = value_of(after, &["--finetune", "--trainable"]);
        settings = short_flags(&applying(read, typed.as_ref().and_then(|typed| typed.to_str())));
    }
    if after.iter().any(|word| word == "--paper") {
        settings.extend(PAPER.map(OsString::from));
    }
    Ok(before.iter().cloned().chain(settings).chain(after.iter().cloned()).collect())
}

/// Settings without what a way of fine-tuning that was typed has no use for: no flag could take it back.
fn applying(settings: RunSettings, typed: Option<&str>) -> RunSettings {
    let Some(finetune) = typed.and_then(|typed| typed.parse::<FinetuneMethod>().ok()) else {
        return settings;
    };
    let mut settings = settings;
    if !finetune.has_adapters() {
        settings.training = settings.training.without_adapters();
    }
    settings.save_merged &= finetune == FinetuneMethod::Lora;
    if finetune == FinetuneMethod::None {
        settings.with_dense = false;
        settings.training = settings.training.untaught();
    }
    settings
}

/// What a flag says that is called one of `names`; the last time it does.
fn value_of(words: &[OsString], names: &[&str]) -> Option<OsString> {
    let of = |at: usize| {
        names.iter().find_map(|name| match words[at] == *name {
            true => words.get(at + 1).cloned(),
            false => Some(words[at].to_str()?.strip_prefix(name)?.strip_prefix('=')?.into()),
        })
    };
    (0..words.len()).rev().find_map(of)
}

/// The command of a run with these settings, into a folder.
pub(crate) fn command_of(settings: &RunSettings, out: &str) -> String {
    let out = [OsString::from("--out"), OsString::from(out)];
    command_text([OsString::from("run")].into_iter().chain(short_flags(settings)).chain(out))
}

/// The flags of `run` that give settings, but for those that say what they would say anyway: what other flags have as their
/// default follows these, also where they are typed behind.
fn short_flags(settings: &RunSettings) -> Vec<OsString> {
    let all = flags(settings);
    let parsed = |flags: &[OsString]| -> Option<RunSettings> {
        let program = ["gradpruner", "run", "--out", "run"].into_iter().map(OsString::from);
        let words = program.chain(flags.iter().cloned());
        match Cli::try_parse_from(words).ok()?.command {
            Command::Run(args) => Some(args.settings().0),
            _ => None,
        }
    };
    // What the others say by default depends on some of these.
    let lasting =
        ["--model=", "--train=", "--prune=", "--criterion=", "--repair=", "--finetune=", "--rank="];
    let stays = |flag: &&OsString| {
        flag.to_str().is_none_or(|flag| lasting.iter().any(|name| flag.starts_with(name)))
    };
    let few: Vec<OsString> = all.iter().filter(stays).cloned().collect();
    let usual = parsed(&few).map_or_else(Vec::new, |settings| flags(&settings));
    let said = all.iter().filter(|flag| stays(flag) || !usual.contains(flag));
    let short: Vec<OsString> = said.cloned().collect();
    if parsed(&short).as_ref() == Some(settings) { short } else { all }
}

/// Settings as the flags of `run` that give them.
fn flags(settings: &RunSettings) -> Vec<OsString> {
    let RunSettings {
        model,
        train,
        eval,
        ignore_fields,
        prune,
        max_drop,
        keep,
        criterion,
        refine,
        choose,
        hold_out,
        repair,
        merge,
        density,
        repair_always,
        finetune,
        restart,
        with_dense,
        save_merged,
        tensorboard,
        seed,
        shard_bytes,
        compute,
        collect,
        linear_map,
        training,
        evaluation,
    } = settings;
    let mut flags = Flags::default();
    flags.set("model", model);
    flags.set_os("train", train);
    if let Some(eval) = eval {
        flags.set_os("eval", eval);
    }
    if !ignore_fields.is_empty() {
        flags.set("ignore-fields", ignore_fields.join(","));
    }
    flags.set("prune", prune);
    flags.set_some("max-drop", *max_drop);
    flags.set("keep", keep);
    flags.set("criterion", criterion);
    flags.set("refine", refine);
    flags.set("choose", choose);
    flags.switch("hold-out", *hold_out);
    flags.set("repair", repair);
    flags.set("merge", merge);
    flags.set("density", density);
    flags.switch("repair-always", *repair_always);
    flags.set("finetune", finetune);
    flags.switch("restart", *restart);
    flags.switch("with-dense", *with_dense);
    flags.switch("save-merged", *save_merged);
    flags.switch("tensorboard", *tensorboard);
    flags.set("seed", seed);
    flags.set("shard-size", shard_bytes);
    flags.set("device", compute.device);
    flags.set("dtype", compute.dtype);
    flags.set_some("memory", compute.memory);
    flags.switch("offload", compute.offload);
    flags.switch("load-in-4bit", compute.in_4bit);
    flags.switch("embedding-in-8bit", compute.embedding_in_8bit);
    match collect.auto {
        true => flags.set("steps", "auto"),
        false => flags.set("steps", collect.steps),
    }
    if *restart {
        flags.set("collect-batch", collect.training.batch_rows);
        flags.set("collect-lr", collect.training.learning_rate);
        flags.set("collect-rank", collect.training.lora_rank);
        flags.set("collect-alpha", collect.training.lora_alpha);
    }
    flags.set_some("map-tokens", linear_map.tokens);
    flags.set("map-ridge", linear_map.ridge);
    flags.training(training);
    flags.evaluation(evaluation);
    flags.0
}

/// Words of a command line.
#[derive(Default)]
struct Flags(Vec<OsString>);

impl Flags {
    fn set(&mut self, name: &str, value: impl ToString) {
        self.0.extend([format!("--{name}={}", value.to_string()).into()]);
    }

    fn set_os(&mut self, name: &str, value: &Path) {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value);
        self.0.push(word);
    }

    fn set_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    fn switch(&mut self, name: &str, on: bool) {
        if on {
            self.0.push(format!("--{name}").into());
        }
    }

    fn training(&mut self, settings: &TrainingSettings) {
        let TrainingSettings {
            epochs,
            max_steps,
            batch_rows,
            accumulate,
            max_tokens,
            learning_rate,
            warmup,
            decay,
            weight_decay,
            max_grad_norm,
            lora_rank,
            lora_alpha,
            rslora,
            dora,
            lora_targets,
            lora_layers,
            remat,
            save_every,
            update_share,
            validation,
            distil,
            teacher,
        } = settings;
        self.set("epochs", epochs);
        self.set_some("max-steps", *max_steps);
        self.set("batch", batch_rows);
        self.set("accumulate", accumulate);
        self.set("max-length", max_tokens);
        self.set("lr", learning_rate);
        self.set("warmup", warmup);
        self.set("decay", decay);
        self.set("weight-decay", weight_decay);
        self.set("max-grad-norm", max_grad_norm);
        self.set("rank", lora_rank);
        self.set("alpha", lora_alpha);
        self.switch("rslora", *rslora);
        self.switch("dora", *dora);
        self.set("targets", Vec::<String>::from(lora_targets.clone()).join(","));
        self.set_some("lora-layers", lora_layers.as_ref());
        self.switch("remat", *remat);
        self.set_some("save-every", *save_every);
        self.set_some("update-share", *update_share);
        if let Some(ValidationSettings { every, patience }) = validation {
            self.set("eval-every", every);
            self.set_some("patience", *patience);
        }
        if let Some(DistilSettings { weight, temperature, top_k: _, hidden }) = distil {
            self.set("distil", weight);
            self.set("distil-temperature", temperature);
            self.set("distil-hidden", hidden);
        }
        if let Some(TeacherSettings { model, adapter }) = teacher {
            self.set("teacher", model);
            if let Some(adapter) = adapter {
                self.set_os("teacher-adapter", adapter);
            }
        }
    }

    fn evaluation(&mut self, settings: &EvaluationSettings) {
        // The longest row is that of the training.
        let EvaluationSettings {
            batch_tokens,
            max_tokens: _,
            max_rows,
            generate_rows,
            max_new_tokens,
        } = settings;
        self.set("eval-batch-tokens", batch_tokens);
        self.set_some("eval-rows", *max_rows);
        self.set("generate-rows", generate_rows);
        self.set("max-new-tokens", max_new_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: Vec<OsString>) -> RunSettings {
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args.settings().0,
            other => panic!("{other:?}"),
        }
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(Into::into).collect()
    }

    /// No flag is at its default in one of the two, and the flags that settings give are those settings.
    #[test]
    fn settings_survive_the_way_through_flags() {
        for typed in [
            "gradpruner run --model m --train t.jsonl --prune 3 --out o",
            "gradpruner run --model m --train t.jsonl --eval e.jsonl --ignore-fields a,b --prune 40% --max-drop 2% --keep first:1 \
             --criterion greedy --refine swap --choose 5% --hold-out --repair same-sign --merge 2 --density 0.3 \
             --repair-always --finetune full \
             --restart --with-dense --save-merged --tensorboard --seed 7 --shard-size 1GB --device cpu --dtype bf16 \
             --memory 8GB --offload --steps 12 --collect-batch 2 --collect-lr 1e-3 --collect-rank 3 --collect-alpha 5 \
             --map-tokens 100 --map-ridge 0.5 --epochs 1.5 --max-steps 9 --batch 3 --accumulate 2 --max-length 99 \
             --lr 1e-5 --warmup 0.2 --decay linear --weight-decay 0.1 --max-grad-norm 2 --rank 5 --alpha 3 \
             --targets q_proj,v_proj --layers 1,2 --remat --save-every 4 --update-share 0.3 \
             --distil 0.25 --distil-temperature 3 --distil-hidden 0.5 --teacher t --teacher-adapter a --eval-batch-tokens 77 --eval-rows 8 \
             --generate-rows 2 --max-new-tokens 6 --out o",
            "gradpruner run --model m --train t.jsonl --prune 3 --lora-layers auto --eval-every 20 --patience 3 --rslora --dora \
             --load-in-4bit --embedding-in-8bit --out o",
        ] {
            let settings = parsed(words(typed));
            let head = words("gradpruner run").into_iter();
            let again = head.chain(flags(&settings)).chain(words("--out o")).collect();
            assert_eq!(parsed(again), settings);
        }
    }

    /// What is printed is short, and is those settings; full fine-tuning has another rate by default than LoRA.
    #[test]
    fn a_command_says_what_differs() {
        let shown = |typed: &str| {
            let settings = parsed(words(typed));
            let command = command_of(&settings, "p");
            assert_eq!(parsed(words(&command)), settings, "{command}");
            command
        };
        assert_eq!(
            shown("gradpruner run --model m --train t.jsonl --prune 3 --out o"),
            "gradpruner run --model=m --train=t.jsonl --prune=3 --criterion=best --repair=linear-map --finetune=lora \
             --rank=16 --out p"
        );
        let full = shown(
            "gradpruner run --model m --train t.jsonl --prune 3 --finetune full --lr 2e-4 --repair same-sign --merge 2 \
             --rank 4 --alpha 32 --hold-out --eval e.jsonl --out o",
        );
        for part in ["--lr=0.0002", "--merge=2", "--alpha=32", "--hold-out", "--eval=e.jsonl"] {
            assert!(full.contains(part), "{part}: {full}");
        }
        assert!(!full.contains("--epochs"), "{full}");
    }

    #[test]
    fn the_papers_form_is_one_flag() {
        let typed = |rest: &str| {
            words(&format!("gradpruner run --model m --train t --prune 4 {rest} --out o"))
        };
        let mut expected = parsed(typed("--epochs 3 --restart")).in_the_papers_form();
        assert_eq!(parsed(expanded(typed("--paper")).unwrap()), expected);
        expected.keep = "first:2".parse().unwrap();
        assert_eq!(parsed(expanded(typed("--keep first:2 --paper")).unwrap()), expected);
        let estimate = expanded(words("gradpruner estimate --model m --paper --epochs 1")).unwrap();
        assert!(Cli::try_parse_from(estimate).is_ok());
        // Another command's flag of that name stands for itself, whatever its folders are called.
        let compare = words(
            "gradpruner -q compare --model run --train t --eval e --prune 4 --out run --paper",
        );
        assert_eq!(expanded(compare.clone()).unwrap(), compare);
    }

    #[test]
    fn typed_flags_win() {
        let settings =
            parsed(words("gradpruner run --model m --train t --prune 3 --lr 0.5 --out o"));
        let head = words("gradpruner run").into_iter();
        let again = head.chain(flags(&settings)).chain(words("--lr 0.25 --prune 4 --out p"));
        let again = parsed(again.collect());
        assert_eq!((again.training.learning_rate, again.prune.to_string()), (0.25, "4".into()));
        assert_eq!(value_of(&words("run --config=x"), &["--config"]), Some("x".into()));
        assert_eq!(value_of(&words("run --out y --config x"), &["--config"]), Some("x".into()));
        assert_eq!(value_of(&words("run --out y"), &["--config"]), None);
        // Of a flag that stands there twice the later wins, by whichever name.
        let typed = words("run --finetune full --trainable=none");
        assert_eq!(value_of(&typed, &["--finetune", "--trainable"]), Some("none".into()));
    }
}
