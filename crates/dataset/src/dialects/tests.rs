//! What every spelling comes to, and what every error says.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::content;
use crate::Content;

fn shown(content: &Content) -> String {
    let chat = match content {
        Content::Text(text) => return format!("text {text:?}\n"),
        Content::Chat(chat) | Content::Choice { chat, .. } => chat,
    };
    let mut lines = String::new();
    for message in &chat.messages {
        let mark = if message.learned { "" } else { ", not learned" };
        lines.push_str(&format!("{}{mark}: ", message.role));
        match &message.content {
            Some(text) => lines.push_str(&format!("{text:?}")),
            None => lines.push_str("nothing"),
        }
        if !message.more.is_empty() {
            lines.push_str(&format!(" {}", json!(message.more)));
        }
        lines.push('\n');
    }
    if !chat.tools.is_empty() {
        lines.push_str(&format!("tools {}\n", json!(chat.tools)));
    }
    if let Content::Choice { choices, answer, .. } = content {
        lines.push_str(&format!("choices {choices:?}, the right one is {answer}\n"));
    }
    lines
}

fn read(row: &Value, ignored: &[&str]) -> String {
    let ignored: Vec<String> = ignored.iter().map(|&key| key.to_owned()).collect();
    match content(row.as_object().unwrap().clone(), &ignored) {
        Ok(content) => shown(&content),
        Err(error) => format!("error: {error}\n"),
    }
}

/// What each row comes to, one after the other.
fn check(rows: &[Value], expected: &Expect) {
    let found: Vec<String> = rows.iter().map(|row| read(row, &[])).collect();
    expected.assert_eq(&found.join("\n"));
}

/// A row whose second turn has more than its role and content.
fn reply(more: &Value) -> Value {
    let mut turn = json!({"role": "assistant", "content": "a"});
    turn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"messages": [{"role": "user", "content": "q"}, turn]})
}

#[test]
fn every_dialect() {
    check(
        &[
            json!({"messages": [
                {"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"}, {"role": "user", "content": "more"},
                {"role": "assistant", "content": "b"},
            ]}),
            json!({"conversations": [
                {"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"}, {"from": "user", "value": "r"},
                {"from": "chatgpt", "value": "b"}, {"from": "human", "value": "t"},
                {"from": "model", "value": "c"}, {"from": "human", "value": "u"},
                {"from": "bot", "value": "d"},
            ]}),
            json!({"conversation": [
                {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
            ]}),
            json!({"instruction": "q", "input": "i", "output": "a"}),
            json!({"instruction": "", "input": "i", "output": ""}),
            json!({"instruction": "q", "input": " ", "output": "a",
                   "history": [["q1", "a1"], ["q2", "a2"]]}),
            json!({"prompt": "q", "completion": "a"}),
            json!({
                "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
                           {"role": "user", "content": "r"}],
                "completion": [{"role": "assistant", "content": "b"}],
            }),
            json!({"question": "q", "answer": "a"}),
            json!({"query": "q", "response": "a"}),
            json!({"prompt": "q", "response": "a"}),
            json!({"instruction": "q", "response": "a"}),
            json!({"text": "once upon a time"}),
        ],
        &expect![[r#"
            system: "s"
            user: "q"
            assistant: "a"
            user: "more"
            assistant: "b"

            system: "s"
            user: "q"
            assistant: "a"
            user: "r"
            assistant: "b"
            user: "t"
            assistant: "c"
            user: "u"
            assistant: "d"

            user: "q"
            assistant: "a"

            user: "q\n\ni"
            assistant: "a"

            user: "i"
            assistant, not learned: ""

            user: "q1"
            assistant: "a1"
            user: "q2"
            assistant: "a2"
            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a"

            user: "q"
            assistant, not learned: "a"
            user: "r"
            assistant: "b"

            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a"

            text "once upon a time"
        "#]],
    );
}

#[test]
fn a_row_that_is_of_no_dialect_or_of_two() {
    check(
        &[
            json!({}),
            json!({"sentence": "x"}),
            json!({"prompt": "q"}),
            json!({"instruction": "q", "input": "i"}),
            json!({"text": ""}),
            json!({"text": ["x"]}),
            json!({"prompt": "q", "completion": "a", "text": "q a"}),
            json!({"messages": [{"role": "user", "content": "q"},
                                {"role": "assistant", "content": "a"}], "prompt": "q"}),
            json!({"text": "x", "system": "s"}),
            json!({"prompt": "q", "chosen": "a", "rejected": "b"}),
            json!({"chosen": [{"role": "user", "content": "q"}], "rejected": []}),
            json!({"prompt": "q", "completion": "a", "image": {"bytes": 7}}),
            json!({"prompt": "q", "completion": "a", "images": ["x.png"]}),
            json!({"text": "x", "audio": "x.wav"}),
            json!({"prompt": "q", "completion": "a", "images": [], "audio": null, "chosen": ""}),
        ],
        &expect![[r#"
            error: it has neither `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `question` and `answer`, nor `text`

            error: it has neither `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `question` and `answer`, nor `text`

            error: it has `prompt` but no `completion`

            error: it has `instruction` but no `output`

            error: `text` is empty

            error: `text` is a list; it must be a string

            error: `text` is not understood here; pass `--ignore-fields text` to skip it

            error: `prompt` is not understood here; pass `--ignore-fields prompt` to skip it

            error: `system` is not understood here; pass `--ignore-fields system` to skip it

            error: `chosen` makes this a preference row, and only supervised fine-tuning is supported; keep the better reply alone, as the last of `messages`

            error: `chosen` makes this a preference row, and only supervised fine-tuning is supported; keep the better reply alone, as the last of `messages`

            error: `image` is not text, and only supervised fine-tuning on text is supported; pass `--ignore-fields image` to skip it

            error: `images` is not text, and only supervised fine-tuning on text is supported; pass `--ignore-fields images` to skip it

            error: `audio` is not text, and only supervised fine-tuning on text is supported; pass `--ignore-fields audio` to skip it

            user: "q"
            assistant: "a"
        "#]],
    );
}

#[test]
fn system_beside_any_dialect() {
    let chat = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let with_system = json!([{"role": "system", "content": "s"}, chat[0], chat[1]]);
    check(
        &[
            json!({"system": "s", "messages": chat}),
            json!({"system": "s", "conversations": chat}),
            json!({"system": "s", "instruction": "q", "output": "a"}),
            json!({"system": "s", "prompt": "q", "completion": "a"}),
            json!({"system_prompt": "s", "question": "q", "response": "a"}),
            json!({"system": "", "prompt": "q", "completion": "a"}),
            json!({"system": "s", "messages": with_system}),
            json!({"system": "t", "messages": with_system}),
            json!({"system": ["s"], "messages": chat}),
        ],
        &expect![[r#"
            system: "s"
            user: "q"
            assistant: "a"

            system: "s"
            user: "q"
            assistant: "a"

            system: "s"
            user: "q"
            assistant: "a"

            system: "s"
            user: "q"
            assistant: "a"

            system: "s"
            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a"

            system: "s"
            user: "q"
            assistant: "a"

            error: `system` and `messages[0]` differ; only one can be shown

            error: `system` is a list; it must be a string
        "#]],
    );
}

#[test]
fn parts_of_content() {
    check(
        &[
            reply(
                &json!({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}),
            ),
            reply(&json!({"content": [{"type": "text", "text": "a", "image_url": null}]})),
            reply(&json!({"content": [{"type": "image_url", "image_url": {"url": "x"}}]})),
            reply(&json!({"content": [{"type": "text"}]})),
            reply(&json!({"content": [{"text": "a"}]})),
            reply(&json!({"content": ["a"]})),
            reply(&json!({"content": [{"type": "text", "text": "a", "bold": true}]})),
            reply(&json!({"content": null})),
            reply(&json!({"content": {"text": "a"}})),
            reply(&json!({"content": 7})),
        ],
        &expect![[r#"
            user: "q"
            assistant: "a b"

            user: "q"
            assistant: "a"

            error: `messages[1].content[0]` is of the type `image_url`; only text is supported

            error: `messages[1].content[0]` has no `text`

            error: `messages[1].content[0]` has no `type`

            error: `messages[1].content[0]` is a string; it must be an object

            error: `messages[1].content[0].bold` is not understood here; pass `--ignore-fields bold` to skip it

            error: `messages[1].content` is missing or null; only a turn with `tool_calls` may leave it out

            error: `messages[1].content` is an object; it must be a string or a list of text parts

            error: `messages[1].content` is a number; it must be a string or a list of text parts
        "#]],
    );
}

#[test]
fn calls_and_tools() {
    let tool = json!({"type": "function", "function": {"name": "look"}});
    let called = json!({"id": "c", "type": "function",
                        "function": {"name": "look", "arguments": "{\"at\": 1}"}});
    let chat = |turn: Value| {
        json!([{"role": "user", "content": "q"}, turn,
               {"role": "tool", "tool_call_id": "c", "name": "look", "content": "r"},
               {"role": "assistant", "content": "a"}])
    };
    let call = json!({"role": "assistant", "content": null, "tool_calls": [called]});
    let old = json!({"role": "assistant", "content": null,
                     "function_call": {"name": "look", "arguments": "{}"}});
    check(
        &[
            json!({"messages": chat(call.clone()), "tools": [tool]}),
            json!({"messages": chat(old), "tools": json!([tool]).to_string()}),
            json!({"conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "{\"name\": \"look\", \"arguments\": {\"at\": 1}}"},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "a"},
            ], "tools": json!([{"name": "look"}]).to_string()}),
            reply(&json!({"tool_calls": [], "function_call": null})),
            reply(&json!({"tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]})),
            reply(&json!({"tool_calls": "look"})),
            reply(&json!({"tool_calls": ["look"]})),
            reply(&json!({"function_call": "look"})),
            json!({"conversations": [{"from": "human", "value": "q"},
                                     {"from": "function_call", "value": "look()"}]}),
            json!({"messages": [{"role": "user", "content": "q", "tool_calls": [called]}]}),
            json!({"prompt": "q", "completion": "a", "tools": "look"}),
            json!({"prompt": "q", "completion": "a", "tools": ["look"]}),
            json!({"prompt": "q", "completion": "a", "tools": {"name": "look"}}),
        ],
        &expect![[r#"
            user: "q"
            assistant: nothing {"tool_calls":[{"id":"c","type":"function","function":{"name":"look","arguments":"{\"at\": 1}"}}]}
            tool: "r" {"name":"look","tool_call_id":"c"}
            assistant: "a"
            tools [{"type":"function","function":{"name":"look"}}]

            user: "q"
            assistant: nothing {"tool_calls":[{"type":"function","function":{"name":"look","arguments":"{}"}}]}
            tool: "r" {"name":"look","tool_call_id":"c"}
            assistant: "a"
            tools [{"type":"function","function":{"name":"look"}}]

            user: "q"
            assistant: nothing {"tool_calls":[{"type":"function","function":{"name":"look","arguments":{"at":1}}}]}
            tool: "r"
            assistant: "a"
            tools [{"name":"look"}]

            user: "q"
            assistant: "a"

            user: "q"
            assistant: "a" {"tool_calls":[{"function":{"name":"look","arguments":{"at":1}}}]}

            error: `messages[1].tool_calls` is a string that holds no JSON list; it must be a list

            error: `messages[1].tool_calls[0]` has no `function` with a `name`

            error: `messages[1].function_call` must be an object with a `name`

            error: `conversations[1]` must be a call in JSON, with `name` and `arguments`

            error: `messages[0]` calls tools, and it is the user's; only the assistant may

            error: `tools` is a string that holds no JSON list; it must be a list

            error: `tools[0]` is a string; it must be an object

            error: `tools` is an object; it must be a list
        "#]],
    );
}

#[test]
fn what_else_a_turn_says() {
    check(
        &[
            reply(&json!({"reasoning_content": "because"})),
            reply(&json!({"reasoning_content": "", "name": "Bo", "refusal": null})),
            reply(&json!({"reasoning_content": ["because"]})),
            reply(&json!({"thinking": "because"})),
            reply(&json!({"tool_call_id": "c"})),
            reply(&json!({"id": 1, "timestamp": "now", "model": "m"})),
            reply(&json!({"reasoning_contents": "because"})),
            reply(&json!({"emotion": "joy"})),
        ],
        &expect![[r#"
            user: "q"
            assistant: "a" {"reasoning_content":"because"}

            user: "q"
            assistant: "a" {"name":"Bo"}

            error: `messages[1].reasoning_content` is a list; it must be a string

            error: `messages[1].thinking` (did you mean `reasoning_content`?) is not understood here; pass `--ignore-fields thinking` to skip it

            error: `messages[1].tool_call_id` is not understood here; pass `--ignore-fields tool_call_id` to skip it

            user: "q"
            assistant: "a"

            error: `messages[1].reasoning_contents` (did you mean `reasoning_content`?) is not understood here; pass `--ignore-fields reasoning_contents` to skip it

            error: `messages[1].emotion` is not understood here; pass `--ignore-fields emotion` to skip it
        "#]],
    );
}

#[test]
fn turns_that_are_not_learned() {
    let user = |more: Value| {
        let mut row = reply(&json!({}));
        row["messages"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let prompted = |more: Value| {
        let mut prompt = reply(&more)["messages"].take();
        prompt.as_array_mut().unwrap().push(json!({"role": "user", "content": "r"}));
        json!({"prompt": prompt, "completion": "b"})
    };
    check(
        &[
            json!({"messages": [
                {"role": "user", "content": "q", "weight": 0},
                {"role": "assistant", "content": "a", "weight": 0.0},
                {"role": "user", "content": "r", "train": false},
                {"role": "assistant", "content": "b", "train": true, "weight": 1},
            ]}),
            reply(&json!({"weight": 0})),
            reply(&json!({"weight": 0.5})),
            reply(&json!({"train": "yes"})),
            reply(&json!({"weight": 0, "train": true})),
            user(json!({"weight": 1})),
            user(json!({"train": true})),
            prompted(json!({"weight": 0})),
            prompted(json!({"weight": 1})),
            prompted(json!({"train": true})),
        ],
        &expect![[r#"
            user: "q"
            assistant, not learned: "a"
            user: "r"
            assistant: "b"

            error: no turn is learned: `weight` or `train` turns off every one of the assistant's

            error: `messages[1].weight` is 0.5; it must be 0 or 1, or false or true

            error: `messages[1].train` is a string; it must be 0 or 1, or false or true

            error: `weight` and `train` of `messages[1]` contradict each other

            error: `messages[0].weight` says to learn the user's turn, and only the assistant's are learned; pass `--ignore-fields weight` to skip it

            error: `messages[0].train` says to learn the user's turn, and only the assistant's are learned; pass `--ignore-fields train` to skip it

            user: "q"
            assistant, not learned: "a"
            user: "r"
            assistant: "b"

            error: `prompt[1].weight` says to learn a turn of the prompt, which is only shown; pass `--ignore-fields weight` to skip it

            error: `prompt[1].train` says to learn a turn of the prompt, which is only shown; pass `--ignore-fields train` to skip it
        "#]],
    );
}

#[test]
fn the_order_of_turns() {
    let chat = |roles: &str| {
        let turns = roles.split(' ').map(|role| json!({"role": role, "content": "x"}));
        json!({"messages": turns.collect::<Vec<_>>()})
    };
    check(
        &[
            chat("assistant user assistant"),
            chat("system tool assistant"),
            chat("user assistant user"),
            chat("user"),
            chat("system"),
            chat("system system user assistant"),
            chat("user narrator assistant"),
            json!({"messages": []}),
            json!({"messages": "q"}),
            json!({"messages": ["q"]}),
            json!({"messages": [{"content": "q"}]}),
            json!({"messages": [{"role": 7, "content": "q"}]}),
            json!({"messages": [{"role": "user", "from": "user", "content": "q"}]}),
            json!({"prompt": 7, "completion": "a"}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "s"},
                                {"role": "assistant", "content": "a"}]}),
            json!({"prompt": "q", "completion": ""}),
            json!({"prompt": "q", "completion": {"role": "assistant"}}),
            json!({"instruction": "q", "output": 7}),
            json!({"instruction": "q", "output": "a", "history": [["q"]]}),
            json!({"instruction": "q", "output": "a", "history": ["q"]}),
        ],
        &expect![[r#"
            error: `messages[0]` is the assistant's; the first turn after the system's must be the user's

            error: `messages[1]` is the tool's; the first turn after the system's must be the user's

            error: `messages[2]`, the last turn, is the user's; it must be the assistant's

            error: `messages[0]`, the last turn, is the user's; it must be the assistant's

            error: it has only a system turn

            error: `messages[1]` is a second system turn; only one can be shown

            error: `messages[1]` has the role `narrator`; known are system, user, assistant and tool, and what ShareGPT calls them

            error: `messages` is empty

            error: `messages` is a string; it must be a list of messages

            error: `messages[0]` is a string; it must be an object

            error: `messages[0]` has no `role`

            error: `messages[0].role` is a number; it must be a string

            error: `messages[0].from` is not understood here; pass `--ignore-fields from` to skip it

            error: `prompt` is a number; it must be a string or a list of messages

            error: `messages[1]` is a system turn after others; it must be the first

            user: "q"
            assistant, not learned: ""

            error: `completion` is an object; it must be a string or a list of messages

            error: `output` is a number; it must be a string

            error: `history[0]` is another list; it must be a list of two strings

            error: `history[0]` is a string; it must be a list of two strings
        "#]],
    );
}

/// A number is a position, also where it is one of the choices; a string is a choice first.
#[test]
fn choices_of_numbers() {
    let row = |answer: Value| json!({"question": "1+2?", "choices": ["2", "3", "4", "6"], "answer": answer});
    let answer = |found: Value| match content(row(found).as_object().unwrap().clone(), &[]) {
        Ok(Content::Choice { answer, .. }) => answer,
        other => panic!("{other:?}"),
    };
    assert_eq!([json!(3), json!(2), json!("3")].map(answer), [3, 2, 1]);
}

#[test]
fn choices() {
    let with = |choices: Value, answer: Value| json!({"question": "q", "choices": choices, "answer": answer});
    let three = json!(["no", "yes", "B"]);
    let arc = json!({"text": ["no", "yes"], "label": ["1", "2"]});
    let mut tagged = reply(&json!({}));
    tagged["choices"] = json!(["b", "a"]);
    tagged["answer"] = json!("a");
    check(
        &[
            with(three.clone(), json!("yes")),
            with(three.clone(), json!(0)),
            with(three.clone(), json!(1.0)),
            with(three.clone(), json!("1")),
            with(three.clone(), json!("A")),
            with(three.clone(), json!("B")),
            json!({"question": "q", "choices": arc, "answerKey": "2"}),
            json!({"question": "q", "choices": arc, "answerKey": 2}),
            json!({"question": "q", "choices": arc, "answerKey": 2.0}),
            tagged.clone(),
            json!({"prompt": "q", "completion": " no ", "choices": ["no", "yes"], "answer": 0}),
            json!({"question": "q", "choices": [], "answer": "a"}),
        ],
        &expect![[r#"
            user: "q"
            assistant: "yes"
            choices ["no", "yes", "B"], the right one is 1

            user: "q"
            assistant: "no"
            choices ["no", "yes", "B"], the right one is 0

            user: "q"
            assistant: "yes"
            choices ["no", "yes", "B"], the right one is 1

            user: "q"
            assistant: "yes"
            choices ["no", "yes", "B"], the right one is 1

            user: "q"
            assistant: "no"
            choices ["no", "yes", "B"], the right one is 0

            user: "q"
            assistant: "B"
            choices ["no", "yes", "B"], the right one is 2

            user: "q"
            assistant: "yes"
            choices ["no", "yes"], the right one is 1

            user: "q"
            assistant: "yes"
            choices ["no", "yes"], the right one is 1

            user: "q"
            assistant: "yes"
            choices ["no", "yes"], the right one is 1

            user: "q"
            assistant: "a"
            choices ["b", "a"], the right one is 1

            user: "q"
            assistant: " no "
            choices ["no", "yes"], the right one is 0

            user: "q"
            assistant: "a"
        "#]],
    );
    tagged["answer"] = json!("b");
    check(
        &[
            tagged,
            with(three.clone(), json!(3)),
            with(three.clone(), json!(-1)),
            with(three.clone(), json!(0.5)),
            with(three.clone(), json!("3")),
            with(three.clone(), json!("D")),
            with(three.clone(), json!("maybe")),
            with(three.clone(), json!(["yes"])),
            json!({"question": "q", "choices": three}),
            with(json!([1, 2]), json!(1)),
            with(json!("no, yes"), json!(1)),
            json!({"question": "q", "choices": arc, "answerKey": "3"}),
            json!({"question": "q", "choices": arc, "answerKey": 0}),
            json!({"question": "q", "choices": {"text": ["no"], "label": []}, "answerKey": "1"}),
            json!({"question": "q", "answer": "a", "answerKey": "1"}),
        ],
        &expect![[r#"
            error: the right one of `choices` is "b", but `messages[1]` says "a"

            error: `answer` is 3, but there are 3 `choices`, counted from 0

            error: `answer` is -1, which is no position counted from 0

            error: `answer` is 0.5, which is no position counted from 0

            error: `answer` is "3", but there are 3 `choices`, counted from 0

            error: `answer` is "D", but there are 3 `choices`, lettered from A

            error: `answer` is "maybe", which is not one of `choices`

            error: `answer` is a list, and must be a string or a number

            error: `choices` need an `answer`: one of them, its position from 0 or its letter

            error: `choices` must be a list of strings, or an object with `text` and `label`

            error: `choices` must be a list of strings, or an object with `text` and `label`

            error: `answerKey` is "3", which is neither one of `choices` nor a label

            error: `answerKey` is 0, which is not a label

            error: `choices` has 1 for `text` and 0 for `label`

            error: `answerKey` is not understood here; pass `--ignore-fields answerKey` to skip it
        "#]],
    );
}

#[test]
fn fields_that_are_passed_over_or_not() {
    let row = json!({
        "prompt": "q", "completion": "a", "id": 1, "source": "s", "nothing": null, "empty": "",
        "none": [], "bare": {}, "hint": "h", "label": 0,
    });
    let found = [
        read(&row, &[]),
        read(&row, &["hint"]),
        read(&row, &["hint", "label"]),
        read(&reply(&json!({"hint": "h"})), &["hint"]),
        read(&json!({"prompt": "q", "completion": "a", "chosen": "c"}), &["chosen"]),
        read(&json!({"prompt": "q", "completion": "a", "ouput": "c"}), &[]),
        read(&json!({"instruction": "q", "output": "a", "inputs": "c"}), &[]),
    ];
    expect![[r#"
        error: `hint`, `label` are not understood here; pass `--ignore-fields hint,label` to skip them

        error: `label` is not understood here; pass `--ignore-fields label` to skip it

        user: "q"
        assistant: "a"

        user: "q"
        assistant: "a"

        user: "q"
        assistant: "a"

        error: `ouput` (did you mean `output`?) is not understood here; pass `--ignore-fields ouput` to skip it

        error: `inputs` (did you mean `input`?) is not understood here; pass `--ignore-fields inputs` to skip it
    "#]].assert_eq(&found.join("\n"));
}
