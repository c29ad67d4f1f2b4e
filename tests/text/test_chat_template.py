"""Chat templates: what transformers renders, and what no template may do."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jllama.errors import JllamaError
from jllama.text.template.chat_template import ChatTemplate, plain_data
from jllama.text.template.sandbox import METHODS
from jllama.text.template.traced_text import GIVEN, OWN
from tests.support.hostile_templates import REACHING_OUT, RUNNING_AWAY
from tests.support.tokenizer_helpers import gguf_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
FAMILIES = json.loads((GOLDENS / "templates.json").read_text(encoding="utf-8"))
USER = {"role": "user", "content": "hi"}


def check(template, cases):
    for case in cases:
        given = (case["messages"], case.get("add_generation_prompt", True), case.get("tools"))
        if "error" in case:
            with pytest.raises(JllamaError) as error:
                template.render(*given, **case.get("extra", {}))
            assert case["error"] in str(error.value)
        else:
            assert template.render(*given, **case.get("extra", {})) == case["expected"]


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"smollm2"}))
def test_equals_transformers(name):
    family = FAMILIES[name]
    source = (GOLDENS / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokens = {key: family[key] for key in ("bos_token", "eos_token")}
    check(ChatTemplate(source, **tokens), family["cases"])


def test_smollm2s_own_template_equals_transformers(smollm2_gguf):
    check(gguf_tokenizer(smollm2_gguf).chat_template, FAMILIES["smollm2"]["cases"])


HOSTILE = """
import json, resource, time
resource.setrlimit(resource.RLIMIT_AS, (700 << 20,) * 2)
from tests.support.hostile_templates import REACHING_OUT, RUNNING_AWAY
from jllama.text.template.chat_template import ChatTemplate
for name, source in {**REACHING_OUT, **RUNNING_AWAY}.items():
    started, outcome = time.thread_time(), ("", "")
    try:
        ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    except Exception as error:
        outcome = type(error).__name__, str(error)
    print(json.dumps([name, [*outcome, time.thread_time() - started]]), flush=True)
"""


@pytest.fixture(scope="module")
def hostile():
    """What became of each in a process with little memory: the kind of error, its text, CPU seconds."""
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", HOSTILE], cwd=root, capture_output=True, text=True)
    return dict(map(json.loads, child.stdout.splitlines())), (child.stderr, child.returncode)


@pytest.mark.parametrize("name", [*REACHING_OUT, *RUNNING_AWAY])
def test_hostile_templates_are_refused_in_bounded_time_and_before_they_take_memory(hostile, name):
    error, text, seconds = hostile[0][name]
    assert error == "JllamaError"
    assert "MemoryError" not in text
    assert seconds < 15


def test_hostile_templates_end_no_process(hostile):
    assert hostile[1] == ("", 0)


# What transformers renders with jinja2's own sandbox.
EXPRESSIONS = """
[1, 2, 3] | slice(2) | list; [1, 2, 3] | slice(2, 0) | list; 'abc' | slice(2) | list
[1, 2, 3] | batch(2) | list; [1, 2, 3] | batch(2, 'x') | list; range(3) | list; 'abc' | list
[3, 1, 2] | sort; 'cab' | sort; 'cab' | sort(reverse=true) | join; 'abc' | join('-'); range(3) | join(', ')
[{'a': 1}, {'a': 2}] | join('+', attribute='a'); [{'a': 1}, {'a': 2}] | sum(attribute='a'); [1.5, 2] | sum
[{'a': 1}] | groupby('a'); ([{'a': 1}] | groupby('a') | first).grouper; 'aab' | unique | list
'abc' | reverse; [1, 2] | reverse | list; range(2) | map('string') | reverse | list
{'b': 1, 'a': 2} | dictsort; {'a': 1} | items | list; {'a': 1} | length; [1, 2] | first; 'abc' | last
'a b' | title; 'a b' | wordcount; 'Abc' | lower; 'abc' | upper; 'abc' | capitalize; 'a' | center(5)
'a b c d' | truncate(5); 'x\\ny' | indent(2); 'x\\ny' | indent('> ', true); 'xyx' | replace('x', 'a')
'xyx' | replace('x', 'a', 1); ' a ' | trim; 'xax' | trim('x'); '<' | e; 1.256 | round(2); -1 | abs; '7' | int
'ff' | int(base=16); '1.5' | float; 5 | string; [1, 'a'] | string; none | default('x', true)
'%s-%05.1f' | format('a', 1.25); '%(a)s' | format(a=1); '%s of %d%%' % ('a', 5); '%(a)s' % {'a': 1}
'{} {x:>5}'.format(1, x=2); '{0[a]}'.format({'a': 1}); '{a}'.format_map({'a': 1}); '{:{}}'.format(1, 5)
('<{}>' | e).format('<'); 'abc'[1:]; 'abc'[::-1]; [1, 2, 3][:-1]; range(5)[1:3] | list; 'abc'[-1]
'a,b,c'.split(',', 1); 'a b\\tc'.split(); 'a,b'.rsplit(',')[1]; 'a\\nb'.splitlines(); 'ab'.partition('b')
'a\\tb'.expandtabs(4); 'a\\tb'.expandtabs(tabsize=2); '7'.zfill(3); 'a'.ljust(3) ~ 'b'.rjust(3, '.')
'-'.join(['a', 'b']); 'abc'.replace('b', 'x'); 'xax'.strip('x'); 'abcb'.rfind('b'); 'é'.isascii(); 2 ** 10
7 // 2; 7 % 3; 7 / 2; 'ab' * 2; 2 * [1]; [1] + [2]; 1 ~ [2] ~ 'c'; 1 < 2 < 3; 2 in [1, 2]
range(4) | select('even') | list; [1, 2] | map('string') | list; [{'a': 1}] | selectattr('a', 'eq', 1) | list
dict(a=1); namespace(a=1).a; [1, 2] | min; {'a': [1, {}]} | tojson(indent=1) | length; 1.0.is_integer()
'x\\n\\ny' | indent; 'x\\n\\ny' | indent(blank=true); 'x\\n\\ny' | indent(3, true); '' | indent(2, true)
'x\\n' | indent; 'a' | center; 'a' | center(4); 5 | center(4); 5 | trim; none | trim; ' a ' | trim(' ')
'a' | trim(none); [] | batch(2, 'x') | list; [1, 2] | batch(2, 'x') | list
range(3) | map('string') | slice(2) | list; range(5) | batch(2, 0) | list; range(5) | slice(3, 0) | list
55 | replace('5', 'a', 1); [1] | replace('1', 'a'); 1.25 | round(1, 'floor'); 1.25 | round(1, 'ceil')
7.5 | round; 125 | round(-1); [1, 2] | sum(start=5); [{'a': 1}] | sum(attribute='a', start=2)
[{'a': 1}, {'a': 2}] | join(attribute='a'); [] | join('x'); 'é<' | tojson; 'é' | tojson(ensure_ascii=true)
{'b': 1, 'a': [2]} | tojson(sort_keys=true); [1] | tojson(indent=0)
{'a': [1, 2]} | tojson(separators=['.', '=']); {'a': [1, 'é']} | tojson(indent=2); none | tojson
[] | tojson(indent=2); '%d%%' | format(5); '%%' | format; 'a%s' | format('b'); '%s%s' | format(1, 'b')
'%ld' % 5; '%((a)b)s' % {'(a)b': 1}; '%(a)s%(b)s' | format(a=1, b=2); '%5s|%-5s|' % ('a', 'b')
'%*d' is string; '%c' % 'a'; '%x' % 255; '%e' % 1.5; '{0}{1}{0}'.format('a', 'b'); '{0.real}'.format(1)
'{!r}'.format('a'); '{:>{w}}'.format('a', w=4); '{{}}'.format(); '{a[b]}'.format(a={'b': 'c'})
'{:{}}{}'.format('a', 3, 'b'); '{:.2f}'.format(1.5); '{x!s:>4}'.format(x='a'); '<' + ('<' | e)
('<' | e) + '<'; '<' ~ ('<' | e); ('<%s>' | e) % '<'; [('<' | e), '<'] | join; '<b>' | safe; 'ab' | list
'ab' | map('upper') | list; {'a': 1} | list; {'a': 1} | join; 'ba' | sort | join; 'ab' | first; 'b' | max
{'a': 2, 'b': 1} | dictsort(by='value'); [3, 1] | sort(reverse=true); ['b', 'A'] | sort
['b', 'A'] | sort(true); [1, 2, 3, 4] | reject('odd') | list; [{'a': 0}] | rejectattr('a') | list
['a', 'A'] | unique | list; [2, 1] | max; '5' | int(7); 'x' | int(7); 'x' | float(1.5); '' | default('x')
'' | default('x', true); none | d('x'); y | default('x'); 'a b c d e f' | truncate(7, true)
'abcdefghijklmnop' | truncate(9, true, '…', 0); 'a' | attr('upper') is defined; 'abc'[5:]; 'abc'[1]
'abc'[-1]; [1, 2][5]; {'a': 1}['b']; {'a': 1}.a; {'items': 1}.items is callable; 'abc'[0:2:2]; 1 in {1: 2}
'a' in 'abc'; 'x' not in 'abc'; not 1; 1 if 0; 'a' if 1 else 'b'; 1 <= 1 < 2; 3 > 2 == 2; 2 - 5; +5; -5
"""


@pytest.mark.parametrize("expression", [one.strip() for one in re.split("[;\n]", EXPRESSIONS) if one.strip()])
def test_an_expression_gives_what_jinja2_gives(expression):
    source = "{{ " + expression.replace("\\\\", "\\") + " }}"
    own = ImmutableSandboxedEnvironment()
    own.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False} | how)
    assert ChatTemplate(source).render([]) == own.from_string(source).render()


WITH = {
    "center": "(9)",
    "ljust": "(9)",
    "rjust": "(9)",
    "zfill": "(9)",
    "count": "('b')",
    "index": "('b')",
    "join": "('xy')",
}
WITH |= dict.fromkeys(
    ["find", "rfind", "rindex", "partition", "rpartition", "startswith", "endswith"], "('b')"
)
WITH |= dict.fromkeys(["removeprefix", "removesuffix"], "('a')") | {"replace": "('b', 'x')"}
WITH |= {"format": "(1)", "format_map": "({})", "get": "('a', 5)"}


PLAIN = [(kind, name) for kind, names in METHODS.items() for name in sorted(names) if hasattr(kind, name)]


@pytest.mark.parametrize(("kind", "method"), PLAIN)
def test_the_methods_of_plain_data_give_what_python_gives(kind, method):
    value = {str: "a B ba", dict: {"a": 1}, list: ["b"], tuple: ("b",), int: 6, float: 1.5}[kind]
    call = WITH.get(method, "()") if callable(getattr(value, method)) else ""
    made = ChatTemplate("{{ x." + method + call + " }}").render([], x=value)
    assert made == str(eval(f"value.{method}{call}", {"value": [*value] if kind is tuple else value}))


@pytest.mark.parametrize(
    "value", ["a", {"a": 1}, ["b"], ("b",), 6, True, 1.5], ids=lambda value: type(value).__name__
)
def test_other_methods_of_plain_data_are_out_of_reach(value):
    kind = next(kind for kind in METHODS if isinstance(value, kind))
    others = [name for name in dir(value) if name not in METHODS[kind] and not name.startswith("_")]
    assert others or kind is tuple
    for name in others:
        with pytest.raises(JllamaError, match=f"it reaches for '{name}' of a "):
            ChatTemplate("{% set y = x." + name + " %}").render([], x=value)


def test_hostile_templates_are_refused_in_other_threads_too():
    outcomes = []

    def render():
        try:
            outcomes.append(ChatTemplate(RUNNING_AWAY["loops"]).render([USER]))
        except JllamaError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(500)
    assert [type(outcome) for outcome in outcomes] == [JllamaError, JllamaError]


def test_a_long_conversation_is_no_hostile_one():
    source = (GOLDENS / "templates" / "chatml.jinja").read_text(encoding="utf-8")
    long = [USER, {"role": "assistant", "content": "word " * 20_000}] * 50
    short = [USER, {"role": "assistant", "content": "yes"}] * 3_000
    template = ChatTemplate(source)
    assert len(template.render([*long, USER])) > 5_000_000
    assert template.render([*short, USER]).count("<|im_start|>") == 6_002


def test_the_templates_own_refusal_is_told():
    template = ChatTemplate("{{ raise_exception('no system role, please') }}")
    with pytest.raises(JllamaError, match="no system role, please"):
        template.render([USER])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% for x in y %}", "{% nonsense %}"])
def test_a_template_that_does_not_compile_says_where(source):
    with pytest.raises(JllamaError, match="line 1"):
        ChatTemplate(source)


def test_missing_fields_are_named():
    with pytest.raises(JllamaError, match="content"):
        ChatTemplate("{{ messages[0].content + 'x' }}").render([{"role": "user"}])


@pytest.mark.parametrize("content", [object(), b"bytes", {1, 2}])
def test_only_plain_data_reaches_a_template(content):
    with pytest.raises(JllamaError, match="plain data"):
        ChatTemplate("{{ messages }}").render([{"role": "user", "content": content}])


def test_lists_that_grow_as_powers_of_two_are_not_copied(monkeypatch):
    monkeypatch.setattr("jllama.text.template.chat_template.MAX_ITEMS", 1000)
    pair = "x"
    for _ in range(12):
        pair = [pair, pair]
    with pytest.raises(JllamaError, match="or more than 1000 items"):
        ChatTemplate("").render([{"role": "user", "content": pair}])
    assert ChatTemplate("x").render([{"role": "user", "content": ["x"] * 900}]) == "x"


@pytest.mark.parametrize(
    ("given", "sound"),
    [
        (["x", "x", {"k": (1,)}], True),  # two lists, a mapping, a key and three others
        (["x", "x", "x", {"k": (1,)}], False),
        ([[[1]]], True),
        ([[[[1]]]], False),
        ({"k": {"k": {"k": 1}}}, True),
        ({"k": {"k": {"k": []}}}, True),
        ({"k": {"k": {"k": [1]}}}, False),
    ],
    ids=str,
)
def test_how_large_and_how_deep_plain_data_may_be(monkeypatch, given, sound):
    monkeypatch.setattr("jllama.text.template.chat_template.MAX_ITEMS", 7)
    monkeypatch.setattr("jllama.text.template.chat_template.MAX_DEPTH", 3)
    if sound:
        assert json.dumps(plain_data(given, "it")) == json.dumps(given)
    else:
        with pytest.raises(JllamaError, match="it holds lists or dictionaries that nest deeper than 3 or"):
            plain_data(given, "it")


NAMED = "system user assistant tool function developer ipython environment documents context observation"


@pytest.mark.parametrize("role", [*NAMED.split(), "evil", "User", "", "system "])
def test_known_roles_are_the_program_s_own_words_and_others_are_given(role):
    """Templates make special tokens of them."""
    made = ChatTemplate("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}").trace(
        [{"role": role, "content": "user"}]
    )
    assert made == role + "user"
    assert made.origins == (OWN if role in NAMED.split() else GIVEN) * len(role) + GIVEN * 4


def test_the_callers_messages_stay_as_they_are():
    messages = [{"role": "user", "content": ["a", {"b": 1}]}]
    before = json.dumps(messages)
    ChatTemplate("{% for m in messages %}{{ m }}{% endfor %}").render(messages)
    assert json.dumps(messages) == before


def test_generation_marks_and_loop_controls():
    source = "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% generation %}{{ i }}"
    source += "{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source).render([]) == "012"


def test_strftime_now_tells_the_year():
    year = ChatTemplate("{{ strftime_now('%Y') }}").render([])
    assert year in {str(time.localtime().tm_year), str(time.localtime(time.time() - 9).tm_year)}
