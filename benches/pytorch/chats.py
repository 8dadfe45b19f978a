"""What transformers renders: chats through chat templates, and pieces of Jinja.

Reads `templates/` and writes `tokenizer.json`, `expected.json` and `jinja.json` beside it. Run with
the folder: crates/testkit/fixtures/chats. Needs transformers 5.24 and jinja2 3.1.6.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|start|>", "<|message|>", "<|end|>"]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "A town, “Zürich” say"},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "place": {
                    "type": "object",
                    "properties": {"x": {"type": ["number", "null"]}, "y": {}},
                    "required": ["x"],
                },
            },
            "required": ["town"],
        },
    },
}


def call(name, arguments, id="abcdefghi"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = {
    "plain": {"messages": [turn("user", "Is it good?"), turn("assistant", "positive")]},
    "system": {
        "messages": [
            turn("system", " Be brief. "),
            turn("user", "Why?\n\nSay <b>\"why\"</b> & 'how'."),
            turn("assistant", "  Because.\nThat is all. "),
        ]
    },
    "turns": {
        "messages": [
            turn("user", "one"),
            turn("assistant", "<think>\nfirst thought\n</think>\n\nan answer"),
            turn("user", "two"),
            turn("assistant", "<think>\nsecond\n</think>\n\nan other answer"),
            turn("user", "three"),
            turn("assistant", "the last"),
        ]
    },
    "reasoning": {
        "messages": [
            turn("user", "What is 1+1?"),
            turn("assistant", "2", reasoning_content="one and one\nis two"),
            turn("user", "And 2+2?"),
            turn("assistant", "4", reasoning_content="two and two"),
        ]
    },
    "tools": {
        "tools": [WEATHER],
        "messages": [
            turn("system", "Call tools."),
            turn("user", "Weather in Zürich?"),
            turn("assistant", None, tool_calls=[call("weather", {"town": "Zürich", "days": [1, 2]})]),
            turn("tool", '{"sky": "☀"}', name="weather", tool_call_id="abcdefghi"),
            turn("assistant", "Sunny."),
            turn("user", "And in Bern?"),
            turn("assistant", None, tool_calls=[call("weather", {"town": "Bern", "x": 1.5e16})]),
            turn("tool", "rain", name="weather", tool_call_id="abcdefghi"),
            turn("assistant", "Rain."),
        ],
    },
    "parallel": {
        "tools": [WEATHER, {"type": "function", "function": {"name": "f", "description": "f"}}],
        "messages": [
            turn("user", "Both?"),
            turn(
                "assistant",
                "I look.",
                tool_calls=[call("weather", {"town": "A"}), call("f", {}, "123456789")],
            ),
            turn("tool", "1", tool_call_id="abcdefghi"),
            turn("tool", "2", tool_call_id="123456789"),
            turn("assistant", "Done."),
        ],
    },
    "unicode": {
        "messages": [
            turn("user", "日本語 🎉 naïve é"),
            turn("assistant", "👩‍👩‍👧 ẞ 中文\u2028\u00a0."),
            turn("user", "…"),
            turn("assistant", "🎉"),
        ]
    },
}

# Each is rendered with the variables below; what Jinja refuses must be refused.
CONTEXT = {
    "text": "  Hello, World\n",
    "words": ["b", "A", "c", "a"],
    "numbers": [3, 1, 2, 10],
    "data": {"z": 1, "a": [True, None, 1.5], "items": "key"},
    "people": [
        {"name": "Ann", "age": 3, "tags": ["x"]},
        {"name": "bob", "age": 1, "tags": []},
        {"name": "Cy", "age": 3},
    ],
    "nothing": None,
    "zero": 0,
}
JINJA = Path(__file__).with_name("jinja.txt").read_text().split("\n---\n")


def tokenizer():
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator([json.dumps(CHATS, ensure_ascii=False)], trainer)
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", found.token_to_id("<s>"))]
    )
    return found


def cases(folder, wrapped):
    for path in sorted((folder / "templates").glob("*.jinja")):
        source = path.read_text()
        for name, chat in CHATS.items():
            case = {"template": path.stem, "chat": name}
            try:
                whole = dict(tools=chat.get("tools"), chat_template=source)
                case["text"] = wrapped.apply_chat_template(
                    chat["messages"], tokenize=False, **whole
                )
                case["prompt"] = wrapped.apply_chat_template(
                    chat["messages"][:-1], tokenize=False, add_generation_prompt=True, **whole
                )
                marked = "{% generation" in source or "{%- generation" in source
                found = wrapped.apply_chat_template(
                    chat["messages"], return_dict=True, return_assistant_tokens_mask=marked, **whole
                )
                case["ids"] = found["input_ids"]
                if marked:
                    case["mask"] = found["assistant_masks"]
            except Exception as error:
                print(path.stem, name, repr(error)[:150], file=sys.stderr)
                case = {**case, "text": None}
            yield case


def pieces():
    for source in JINJA:
        try:
            yield [source, _compile_jinja_template(source).render(**CONTEXT)]
        except Exception as error:
            print(source, repr(error)[:150], file=sys.stderr)
            yield [source, None]


def write(path, value, **more):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0, **more) + "\n")


def main():
    folder = Path(sys.argv[1])
    found = tokenizer()
    found.save(str(folder / "tokenizer.json"), pretty=False)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    text = wrapped("Is it good?")["input_ids"]
    expected = {"chats": CHATS, "cases": list(cases(folder, wrapped)), "text": text}
    compact = json.dumps(expected, ensure_ascii=False)
    (folder / "expected.json").write_text(compact + "\n")
    write(folder / "jinja.json", {"context": CONTEXT, "pieces": list(pieces())})


main()
