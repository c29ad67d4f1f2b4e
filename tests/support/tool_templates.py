"""Chat templates that have tools, each in its own manner; further ones are in `tests/goldens/templates`."""

from pathlib import Path

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "templates"
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

# As SmolLM2's: no tools at all.
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\\nYou are an "
    "assistant named SmolLM<|im_end|>\\n' }}{% endif %}" + TURN + "{% endfor %}" + ASKS
)
# As SmolLM3's: tools under a name of their own, results as a user's words, earlier calls not at all.
SMOLLM3 = (
    "{{ '<|im_start|>system\\nI am named SmolLM. ' }}{% if xml_tools %}{{ 'Tools, called by <tool_call>: ' + "
    "xml_tools | tojson }}{% endif %}{{ '<|im_end|>\\n' }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + ASKS
)
# As those of Mistral's models since version 11.
MISTRAL_ARGS = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}"
    "{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
# As llama.cpp's for Phi-4-mini: each call between marks of its own.
PHI_EACH = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if loop.first and tools %}{% for t in tools %}"
    "{{ '<|tool|>' + t.function | tojson + '<|/tool|>' }}{% endfor %}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<|tool_call|>' + c.function | tojson + '<|/tool_call|>' }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Parameters as XML, which is not known here.
XML = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call><function={{ "
    "c.function.name }}></function></tool_call>{% endfor %}{% endfor %}"
)
# Tools in a way that nothing tells.
SILENT = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"


def sources() -> dict[str, str]:
    """By name."""
    kept = {path.stem: path.read_text() for path in GOLDENS.glob("*.jinja")}
    own = dict(smollm2=SMOLLM2, smollm3=SMOLLM3, mistral_args=MISTRAL_ARGS, phi_each=PHI_EACH)
    return {**kept, **own}
