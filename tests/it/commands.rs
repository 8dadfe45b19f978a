//! The single commands, one after the other, on a tiny model.

use expect_test::expect;
use serde_json::Value;

use crate::support::{Desk, text};

const TRAIN: &str = "--device cpu --dtype f32 --epochs 2 --batch 4 --accumulate 1 --lr 5e-3";

#[test]
fn collect_to_eval_by_hand() {
    let desk = Desk::new();
    let found = desk.json(
        "collect --model model --train train.jsonl --steps 4 --device cpu --dtype f32 --out record \
         --scores summed.json",
    );
    assert_eq!(found["steps"].as_array().unwrap().len(), 4);
    assert_eq!(found["block_influence"].as_array().unwrap().len(), 6);
    assert_eq!(found["stability"]["steps"], 4);
    assert!(found["stability"]["between_halves"].is_number());

    // What was summed in memory is what the record says.
    desk.run("score record --verify --out scores.json");
    let read = |name: &str| testkit::json(&desk.at(name));
    assert_eq!(read("summed.json"), read("scores.json"));
    for criterion in ["igia-fro", "igia-mean", "bi", "magnitude"] {
        let scores = desk.json(&format!("score record --criterion {criterion} --model model"));
        assert_eq!(scores["criterion"], criterion);
        assert_eq!(scores["layers"].as_array().unwrap().len(), 6);
    }

    let plan = desk.json("plan scores.json --prune 33% --merge 0 --out plan.json");
    assert_eq!(plan["pruned"].as_array().unwrap().len(), 2);
    assert_eq!(plan["repair"], "linear-map");
    // The rows that maps are fitted on are the record's.
    let report = desk.json("prune --model model --plan plan.json --record record --out pruned");
    assert_eq!((&report["after"]["num_layers"], &report["repair"]), (&4.into(), &plan["repair"]));
    assert!(desk.at("pruned/tokenizer.json").exists());

    let found = desk.json(&format!(
        "finetune --model pruned --train train.jsonl --out adapter --merged merged {TRAIN}"
    ));
    assert_eq!(found["report"]["steps"], 12);
    let eval = |arguments: &str| {
        desk.json(&format!("eval --data test.jsonl --device cpu --dtype f32 {arguments}"))
    };
    let (adapted, merged) =
        (eval("--model pruned --adapter adapter"), eval("--model merged --out eval.json"));
    assert_eq!(adapted["acc"], merged["acc"]);
    let perplexity = |report: &Value| report["perplexity"].as_f64().unwrap();
    assert!((perplexity(&adapted) / perplexity(&merged) - 1.0).abs() < 1e-4);
    assert!(perplexity(&merged) < 0.5 * perplexity(&eval("--model pruned")));
    assert_eq!(read("eval.json")["format"], "gradpruner-evaluation");

    desk.run(&format!(
        "finetune --model pruned --train train.jsonl --method full --out tuned {TRAIN}"
    ));
    assert!(perplexity(&eval("--model tuned")) < 0.5 * perplexity(&eval("--model pruned")));
    for what in ["model", "record", "adapter", "tuned", "./scores.json", "./plan.json"] {
        assert!(!desk.run(&format!("inspect {what}")).is_empty(), "{what}");
    }
}

/// docs/method.md has a row for every criterion, in their order.
#[test]
fn the_docs_list_every_criterion() {
    let docs = include_str!("../../docs/method.md");
    let table = docs.lines().skip_while(|line| !line.starts_with("| `--criterion`")).skip(1);
    let rows = table.filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let listed: Vec<&str> = rows.map(|(name, _)| name).collect();
    let known: Vec<&str> = selection::Criterion::all().map(selection::Criterion::name).collect();
    assert_eq!(listed, known);
}

/// Every criterion plans from a record; the guard holds, and every repair does what it says.
#[test]
fn plans_and_repairs() {
    let desk = Desk::new();
    desk.run(
        "collect --model model --train train.jsonl --steps 4 --device cpu --dtype f32 --out record",
    );
    for criterion in selection::Criterion::all().map(selection::Criterion::name) {
        let plan = |rest: &str| {
            desk.json(&format!(
                "plan record --model model --train train.jsonl --dtype f32 --criterion {criterion} {rest}"
            ))
        };
        let pruned = plan("--prune 4")["pruned"].clone();
        match criterion {
            "random" => assert_eq!(pruned.as_array().unwrap().len(), 4),
            _ => assert_eq!(pruned, serde_json::json!([1, 2, 3, 4]), "{criterion}"),
        }
        let all_but_one = plan("--prune 5 --keep none --repair drop");
        assert_eq!(all_but_one["pruned"].as_array().unwrap().len(), 5);
        assert_eq!((&all_but_one["version"], &all_but_one["repair"]), (&1.into(), &Value::Null));
    }
    let failure = desk.failure("plan record --prune 5");
    expect![[r#"
        exit 1
        error: cannot plan from `record`
          because: --keep first:1,last:1 leaves 4 of 6 layers to choose from, and 5 are to go; prune fewer, or keep fewer (`--keep none` keeps no layer by its place)
    "#]]
    .assert_eq(&failure);

    let failure = desk.failure("plan record --prune 2 --criterion greedy --model model");
    expect![[r#"
        exit 1
        error: cannot plan from `record`
          because: `greedy` needs losses with layers skipped; name the model (--model) and rows (--train)
    "#]]
    .assert_eq(&failure);
    let failure = desk.failure("plan record --prune 2 --refine swap");
    assert!(failure.contains("`--refine swap` needs losses with layers skipped"), "{failure}");
    desk.run("plan record --model model --train train.jsonl --prune 2 --refine swap --dtype f32");

    let failure = desk.failure("score record --criterion greedy");
    assert!(
        failure.contains("`greedy` runs the model; choose layers with it by `plan RECORD"),
        "{failure}"
    );
    let failure = desk.failure("score record --criterion last");
    assert!(failure.contains("`last` gives layers no scores"), "{failure}");
    desk.run("plan record --criterion last --prune 2 --out plan.json");
    let deep = fs_err::read_to_string(desk.at("plan.json")).unwrap();
    desk.write("deep.json", &deep.replace("\"num_layers\": 6", "\"num_layers\": 9"));
    let failure = desk.failure("prune --model model --plan deep.json --train train.jsonl --out x");
    assert!(failure.contains("it is for 9 layers, the model has 6"), "{failure}");
    let prune =
        |rest: &str| desk.json(&format!("prune --model model --plan plan.json --dtype f32 {rest}"));
    prune("--train train.jsonl --verify --out mapped/");
    prune("--repair drop --out dropped");
    let down = |folder: &str, layer: usize| {
        let file = desk.at(folder).join("model.safetensors");
        testkit::tensor_f32(&file, &format!("model.layers.{layer}.mlp.down_proj.weight")).1
    };
    assert_ne!(down("mapped", 2), down("dropped", 2));
    assert_eq!(down("mapped", 1), down("dropped", 1));
    let perplexity = |model: &str| {
        let eval = format!("eval --model {model} --data train.jsonl --device cpu --dtype f32");
        desk.json(&eval)["perplexity"].as_f64().unwrap()
    };
    assert!(perplexity("mapped") < perplexity("dropped"));
    assert!(!desk.at(".mapped.maps").exists());
    let failure = desk.failure("prune --model model --plan plan.json --out x");
    assert!(
        failure.contains("fitted on rows; add `--train`, or take `--repair drop`"),
        "{failure}"
    );
}

/// Each repair changes the layers it is said to change, and what it was fitted is gone afterwards.
#[test]
fn repairs_of_one_plan() {
    let desk = Desk::new();
    desk.run(
        "collect --model model --train train.jsonl --steps 4 --device cpu --dtype f32 --out record",
    );
    desk.run("plan record --criterion last --prune 2 --out plan.json");
    let prune =
        |rest: &str| desk.json(&format!("prune --model model --plan plan.json --dtype f32 {rest}"));
    let down = |folder: &str, layer: usize| {
        let file = desk.at(folder).join("model.safetensors");
        testkit::tensor_f32(&file, &format!("model.layers.{layer}.mlp.down_proj.weight")).1
    };
    let perplexity = |model: &str| {
        let eval = format!("eval --model {model} --data train.jsonl --device cpu --dtype f32");
        desk.json(&eval)["perplexity"].as_f64().unwrap()
    };
    prune("--repair drop --out dropped");
    // Layers 3 and 4 go: 2 stands before them, and 5 behind them is the fourth then.
    for (repair, fitted, changed) in
        [("scale", "scales", 3), ("reconstruct", "reconstructed", 2), ("laco", "none", 2)]
    {
        let report =
            prune(&format!("--repair {repair} --train train.jsonl --verify --out {repair}"));
        assert_eq!(report["repair"], repair);
        for layer in 0..4 {
            let same = down(repair, layer) == down("dropped", layer);
            assert_eq!(same, layer != changed, "{repair}, layer {layer}");
        }
        assert!(!desk.at(&format!(".{repair}.{fitted}")).exists());
    }
    assert!(perplexity("reconstruct") < perplexity("dropped"));

    // Half of the most important elements, or as many as hold most of the importance, and no more than the step says.
    let weighted = |density: &str| {
        desk.run(&format!(
            "plan record --criterion last --prune 2 --repair weighted --merge 1 --density {density} --out w.json"
        ));
        let report = desk
            .json(&format!("prune --model model --plan w.json --record record --out w-{density}"));
        assert_eq!((&report["repair"], &report["step"]), (&"weighted".into(), &1.0.into()));
        down(&format!("w-{density}"), 2)
    };
    let (half, most) = (weighted("0.5"), weighted("auto"));
    assert!(half != most && most != down("dropped", 2));

    // Judged: a map that helps is the same map, and of a merge the step that loses least is taken, which may be none.
    let judged = prune("--repair linear-map --judge --train train.jsonl --verify --out judged");
    assert_eq!(judged["repair"], "linear-map");
    prune("--repair linear-map --train train.jsonl --out unjudged");
    assert_eq!(down("judged", 2), down("unjudged", 2));
    let report =
        desk.json("prune --model model --plan w.json --record record --judge --dtype f32 --out j");
    match report["step"].as_f64() {
        Some(step) => assert!([0.25, 0.5, 1.0].contains(&step), "{report}"),
        None => assert_eq!((&report["repair"], down("j", 2)), (&"drop".into(), down("dropped", 2))),
    }
    assert!(desk.listing().iter().all(|name| !name.starts_with(".j")), "{:?}", desk.listing());
    let failure =
        desk.failure("prune --model model --plan plan.json --repair laco --judge --out x");
    assert!(failure.contains("--judge needs rows: give --train"), "{failure}");
    let failure = desk.failure("prune --model model --plan plan.json --repair weighted --out x");
    assert!(failure.contains("make one that does by `gradpruner plan --merge`"), "{failure}");
    let failure = desk.failure("prune --model model --plan plan.json --repair scale --out x");
    assert!(
        failure.contains("repairs by `scale`, which is fitted on rows; add `--train`"),
        "{failure}"
    );
}

/// Computing layers again changes no byte of the result; steps are logged either way.
#[test]
fn finetune_again_and_in_part() {
    let desk = Desk::new();
    let finetune = |rest: &str| {
        desk.json(&format!("finetune --model model --train train.jsonl {TRAIN} {rest}"))
    };
    finetune("--out plain --metrics steps.jsonl --tensorboard events");
    finetune("--out again --remat");
    let weights =
        |name: &str| fs_err::read(desk.at(name).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("plain"), weights("again"));
    assert_eq!(fs_err::read_to_string(desk.at("steps.jsonl")).unwrap().lines().count(), 12);
    assert_eq!(fs_err::read_dir(desk.at("events/finetune")).unwrap().count(), 1);

    finetune("--trainable head+last:1 --out part");
    let tensors = |folder: &str, layer: usize| {
        let file = desk.at(folder).join("model.safetensors");
        testkit::tensor_f32(&file, &format!("model.layers.{layer}.mlp.up_proj.weight")).1
    };
    assert_eq!(tensors("model", 4), tensors("part", 4));
    assert_ne!(tensors("model", 5), tensors("part", 5));
    let failure =
        desk.failure("finetune --model model --train train.jsonl --trainable head+last:7 --out x");
    assert!(failure.contains("the model has 6 layers, not 7"), "{failure}");
}

/// `--steps auto` stops once the layers to prune are the same ones for ten steps.
#[test]
fn collecting_stops_when_the_choice_has_settled() {
    let desk = Desk::new();
    let found = desk.json(
        "collect --model model --train train.jsonl --steps auto --prune 1 --device cpu --dtype f32 \
         --collect-batch 1 --out record",
    );
    let steps = found["steps"].as_array().unwrap().len();
    let settled = found["stability"]["settled_since"].as_u64().unwrap() as usize;
    // Three epochs of 24 rows, one a step, are the most there are.
    assert!(steps == (settled + 10).max(20) || steps == 72, "{steps} steps, settled at {settled}");
}

#[test]
fn rows_without_choices_are_answered() {
    let desk = Desk::new();
    desk.write("text.jsonl", "{\"prompt\": \"a\", \"completion\": \"b c d\"}\n");
    let report = desk.json("eval --model model --data text.jsonl --device cpu --max-new-tokens 5");
    assert!(report["acc"].is_null() && report["rouge"]["rougeL"].is_number());
    assert_eq!(report["generated"][0]["reference"], "b c d");
}

#[test]
fn generate_prints_only_the_reply() {
    let desk = Desk::new();
    let output = desk.output("generate --model model --prompt hi --max-new-tokens 4 --device cpu");
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("tokens/s"));
    let found = desk.json("generate --model model --prompt hi --max-new-tokens 4 --device cpu");
    assert!((1..=4).contains(&found["tokens"].as_array().unwrap().len()));
}

#[test]
fn help_has_an_example_for_every_command() {
    let desk = Desk::new();
    for command in [
        "run",
        "compare",
        "estimate",
        "collect",
        "score",
        "plan",
        "prune",
        "finetune",
        "eval",
        "generate",
        "inspect",
        "convert",
        "push",
        "completions",
    ] {
        let help = desk.run(&format!("{command} --help"));
        assert!(
            help.contains(&format!("gradpruner {command}")) && help.contains("Example"),
            "{help}"
        );
    }
    assert!(desk.run("completions bash").contains("_gradpruner"));
}

/// Rows as the model sees them, and in numbers.
#[test]
fn rows_can_be_looked_at() {
    let desk = Desk::new();
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
        {% if loop.last and m.thinking %}({{ m.thinking }}){% endif %}{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    desk.write("model/chat_template.jinja", template);
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let two =
        [turn("user", "p"), turn("assistant", "q"), turn("user", "r"), turn("assistant", "s")];
    let long = [turn("user", "pp"), turn("assistant", &"x".repeat(80))];
    let quiet = [turn("user", &"y".repeat(80)), turn("assistant", "z")];
    let rows = [&two[..], &long, &quiet]
        .map(|messages| serde_json::json!({ "messages": messages }).to_string());
    desk.write("rows.jsonl", &rows.join("\n"));
    expect![[r#"
        3 rows: 2 cut, 1 left out; 110 tokens, 47 learned
        tokens of a row: 46 to 103, half up to 102, 90 % up to 103, 99 % up to 103

        rows.jsonl line 1: 46 tokens, 4 learned

        <|im_start|>user
        p<|im_end|>
        <|im_start|>assistant
        [[q<|im_end|>]]
        <|im_start|>user
        r<|im_end|>
        <|im_start|>assistant
        [[s<|im_end|>]]
    "#]]
    .assert_eq(&desk.run("inspect rows.jsonl --model model --max-length 64"));
    let row = desk.json("inspect rows.jsonl --model model --row 2 --max-length 64");
    assert_eq!(row["row"]["place"], "rows.jsonl line 2");
    assert_eq!(row["row"]["examples"][0]["tokens"], 64);
    assert_eq!(row["row"]["examples"][0]["text"][1]["learned"], true);
    expect![[r"
        exit 1
        error: cannot inspect `rows.jsonl`
          because: it has only 3 rows
    "]]
    .assert_eq(&desk.failure("inspect rows.jsonl --model model --row 4"));
    expect![[r"
        exit 1
        error: cannot inspect `./rows.jsonl`
          because: it is not a .json or .gguf file; rows need `--model`, whose template shows them
    "]]
    .assert_eq(&desk.failure("inspect ./rows.jsonl"));

    // Whoever trains or evaluates on them is told.
    let cheap = crate::support::CHEAP_TRAINING;
    let training =
        format!("finetune --model model --train rows.jsonl --out adapter --max-length 64 {cheap}");
    let output = desk.output(&training);
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("3 rows: 2 cut, 1 left out; 110 tokens, 47 learned"), "{told}");
    assert!(told.contains("a tenth of the rows or more does not fit `--max-length`"), "{told}");
    let arguments = "eval --model model --data rows.jsonl --max-length 64 --generate-rows 0 \
         --device cpu --dtype f32";
    let evaluated = desk.run(arguments);
    assert!(evaluated.contains("3, 2 of them cut to fit --max-length"), "{evaluated}");
    assert_eq!(desk.json(arguments)["cut_rows"], 2);
}

/// A template's error names its file and line, and the row's.
#[test]
fn a_template_that_cannot_be_rendered_is_named() {
    let desk = Desk::new();
    let doubling = "{% set ns = namespace(s='xx') %}\n{% for i in range(99) %}\
        {% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    desk.write("model/chat_template.jinja", doubling);
    expect![[r#"
        exit 1
        error: cannot inspect `train.jsonl`
          because: train.jsonl line 1 cannot be encoded
          because: ./model/chat_template.jinja line 2: the limit on memory is reached: the template makes too much text
    "#]]
    .assert_eq(&desk.failure("inspect train.jsonl --model ./model"));
}

/// A family that is not trained here: everything but training works on its layers, and what needs training says so.
#[test]
fn a_decoder_of_another_family() {
    let desk = Desk::new();
    testkit::made_up_decoder("gpt2", &desk.at("gpt2"));
    let seen = desk.run("inspect gpt2");
    assert!(seen.contains("gpt2, 6 layers at `transformer.h`"), "{seen}");
    assert!(seen.contains("attn.c_attn") && seen.contains("trained elsewhere"), "{seen}");
    write_record(&desk, 6);
    let scores = desk.json("score record --out scores.json");
    assert_eq!(scores["layers"][3]["modules"].as_object().unwrap().len(), 1);
    let magnitude = desk.json("score record --criterion magnitude --model gpt2");
    assert_eq!(magnitude["layers"][0]["modules"].as_object().unwrap().len(), 4);
    desk.run(
        "plan scores.json --prune 2 --merge 1 --density 0.5 --repair same-sign --out plan.json",
    );
    let report =
        desk.json("prune --model gpt2 --plan plan.json --record record --out pruned --verify");
    assert_eq!(report["after"]["num_layers"], 4);
    assert_eq!(testkit::json(&desk.at("pruned/config.json"))["n_layer"], 4);
    let error = desk.failure("run --model gpt2 --train train.jsonl --prune 2 --out run");
    assert!(error.contains("`model_type` is `gpt2`; llama, mistral, qwen2,"), "{error}");
    assert!(!desk.at("run").exists());
}

/// A record as PEFT's names make one, of one weight a layer.
fn write_record(desk: &Desk, num_layers: usize) {
    fs_err::create_dir(desk.at("record")).unwrap();
    for step in 1..=3 {
        let tensors: Vec<_> = (0..num_layers)
            .flat_map(|layer| {
                let name = format!("base_model.model.transformer.h.{layer}.attn.c_attn");
                [("A", vec![2, 32]), ("B", vec![96, 2])].map(|(side, shape)| {
                    let name = format!("{name}.lora_{side}.default.weight");
                    (name, shape, 100 * step + layer)
                })
            })
            .collect();
        testkit::write_made_up(&desk.at(&format!("record/step-{step:05}.safetensors")), &tensors);
    }
}

/// A trained model becomes a GGUF file and comes back with the same answers.
#[test]
fn a_folder_becomes_gguf_and_comes_back() {
    let desk = Desk::new();
    testkit::cut_words_as_gpt2(&desk.at("model"));
    let report = desk.json("convert model --to gguf --type f32 --out model.gguf");
    assert_eq!((&report["architecture"], &report["num_layers"]), (&"llama".into(), &6.into()));
    assert_eq!(report["modelfile"], "Modelfile");
    let modelfile = fs_err::read_to_string(desk.at("Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./model.gguf\n"), "{modelfile}");
    let other = desk.run("convert model --to gguf --out other.gguf");
    assert!(
        other.contains("a different Modelfile is already there and was left unchanged"),
        "{other}"
    );
    assert_eq!(fs_err::read_to_string(desk.at("Modelfile")).unwrap(), modelfile);
    let report = desk.json("convert model --to gguf --type q4_k_m --out small.gguf");
    assert_eq!(report["format"], "q4_k_m");
    desk.run("convert model.gguf --out back");
    let eval = |model: &str| {
        let found =
            desk.json(&format!("eval --model {model} --data test.jsonl --device cpu --dtype f32"));
        (found["acc"].clone(), found["perplexity"].as_f64().unwrap())
    };
    let ((acc, perplexity), (again, back)) = (eval("model"), eval("back"));
    assert_eq!(acc, again);
    // What comes back is rounded to BF16.
    assert!((perplexity / back - 1.0).abs() < 0.02, "{perplexity} {back}");
    for (arguments, reason) in [
        (
            "convert model --out x",
            "an ordinary one already; to make a GGUF file of it, add `--to gguf`",
        ),
        ("convert model --to gguf --out model.gguf", "exists already"),
    ] {
        let error = desk.failure(arguments);
        assert!(error.contains(reason), "{error}");
    }
    testkit::made_up_decoder("phi3", &desk.at("phi3"));
    let error = desk.failure("convert phi3 --to gguf --out x.gguf");
    assert!(error.contains("phi3/tokenizer.json`: No such file"), "{error}");
    assert!(!desk.at("x.gguf").exists());
}

/// A checkpoint in four bits is refused with what to do, and that makes a model of it.
#[test]
fn four_bits_become_an_ordinary_folder() {
    let desk = Desk::new();
    testkit::copy_folder(&testkit::fixture("bitsandbytes/nf4_nested"), &desk.at("small"));
    let error = desk.failure("inspect small");
    assert!(error.contains("`gradpruner convert DIR --out NEW` makes an ordinary one"), "{error}");
    let report = desk.json("convert small --out wide");
    assert_eq!((&report["widened"], &report["copied"]), (&7.into(), &5.into()));
    assert!(desk.run("inspect wide").starts_with("Llama, 1 layers"));
    let error = desk.failure("convert small --out wide");
    assert!(error.contains("exists already"), "{error}");
}
