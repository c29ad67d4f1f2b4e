"""Makes tests/goldens/templates.json: what transformers' apply_chat_template renders.

    python tests/goldens/make_templates.py [SmolLM2-135M-Instruct.Q4_1.gguf]

Needs transformers, and gguf for SmolLM2's own template. The templates in templates/ are our own
writing, in the manner of published families and with the constructs theirs use.
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent

USER = {"role": "user", "content": "Hello, how are you?"}
ANSWER = {"role": "assistant", "content": " I'm fine, thank you.\n"}
AGAIN = {"role": "user", "content": '  Tell me <b>more</b> & "more"\n\tplease 🙂 '}
SYSTEM = {"role": "system", "content": "You are a pirate.\nSay arr."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "abcdef123",
            "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": '{"t": 21.5}'}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather's forecast",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Où ?"}},
            "required": ["city"],
        },
    },
}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, AGAIN],
    "system turns": [SYSTEM, USER, ANSWER, AGAIN, ANSWER],
    "twice": [USER, USER],
    "tool call": [SYSTEM, USER, CALL, RESULT, ANSWER, AGAIN],
    "tool result": [USER, CALL, RESULT],
}
# Beyond the conversations that every template gets.
MORE = {
    "chatml": [
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFine."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
                {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
            ]
        },
        {"messages": [USER], "extra": {"enable_thinking": False}},
    ],
    "llama3": [{"messages": [SYSTEM, USER], "extra": {"date_string": "1 Jan 2025"}}],
    "phi": [{"messages": [{**SYSTEM, "tools": "[]"}, USER]}],
    "dated": [
        {"messages": [USER, {**AGAIN, "shout": True}, ANSWER], "extra": {"name": "Ann"}},
    ],
}
TOKENS = {
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "zephyr": ("<s>", "</s>"),
    "chatml": (None, "<|im_end|>"),
    "mistral": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "phi": ("<s>", "<|endoftext|>"),
    "dated": ("<s>", "</s>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
}


def cases(name: str) -> list[dict]:
    plain = [
        {"messages": messages, "add_generation_prompt": prompt}
        for messages in CONVERSATIONS.values()
        for prompt in (True, False)
    ]
    tooled = [
        {"messages": CONVERSATIONS[key], "add_generation_prompt": True, "tools": [TOOL, TOOL]}
        for key in ("one", "system turns", "tool call")
    ]
    return plain + tooled + MORE.get(name, [])


def render(source: str, tokens: tuple, case: dict) -> dict:
    named = zip(("bos_token", "eos_token"), tokens, strict=True)
    try:
        (text,), _ = render_jinja_template(
            [case["messages"]],
            tools=case.get("tools"),
            chat_template=source,
            add_generation_prompt=case.get("add_generation_prompt", True),
            **{name: token for name, token in named if token is not None},
            **case.get("extra", {}),
        )
    except Exception as error:
        return {**case, "error": str(error)}
    return {**case, "expected": text}


def main() -> None:
    sources = {p.stem: p.read_text(encoding="utf-8") for p in sorted((HERE / "templates").iterdir())}
    for path in sys.argv[1:]:
        import gguf

        field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
        sources["smollm2"] = field.contents()
    goldens = {
        name: {
            "bos_token": TOKENS[name][0],
            "eos_token": TOKENS[name][1],
            "cases": [render(source, TOKENS[name], case) for case in cases(name)],
        }
        for name, source in sources.items()
    }
    text = json.dumps(goldens, ensure_ascii=False, indent=1)
    (HERE / "templates.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
