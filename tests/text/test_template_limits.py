"""What a chat template may do at most, each limit from both sides, and how it is told what it did."""

import pytest

from jllama.errors import JllamaError
from jllama.text.template import prices
from jllama.text.template.chat_template import ChatTemplate
from jllama.text.template.sandbox import MAX_SOURCE_CHARS

# What is allowed, what is one too many, and the words of the refusal.
LIMITS = [
    ("[1] | batch(100000) | length", "[1] | batch(100001) | length", "huge batches"),
    ("[1] | batch(1) | length", "[1] | batch(0) | length", "huge batches"),
    ("[] | slice(100000) | length", "[] | slice(100001) | length", "huge numbers of slices"),
    ("[] | slice(1) | length", "[] | slice(0) | length", "huge numbers of slices"),
    ("1.5 | round(100)", "1.5 | round(101)", "huge number of digits"),
    ("1.5 | round(-100)", "1.5 | round(-101)", "huge number of digits"),
    ("'a' | trim('b' * 100)", "'a' | trim('b' * 101)", "trims a huge set"),
    ("[1] | tojson(indent=32)", "[1] | tojson(indent=33)", "indents JSON"),
    ("[1] | tojson(indent=0)", "[1] | tojson(indent=-1)", "indents JSON"),
    ("[] | tojson(separators=(',' * 16, ':' * 16))", "[] | tojson(separators=(',' * 17, ':' * 16))", "long"),
    ("[1, 2] | sum(start=1.5)", "[1, 2] | sum(start='')", "sums what are no numbers"),
    ("[{}] | map(attribute=32 * '.', default=1) | list", "[{}] | map(attribute=33 * '.') | list", "without"),
    ("[{}] | sort(attribute='a,' * 32 ~ 'b')", "[{}] | sort(attribute='a,' * 33 ~ 'b')", "without end"),
    ("[{}] | unique(false, 'a.' * 32 ~ 'b')", "[{}] | unique(false, 'a.' * 33 ~ 'b')", "without end"),
    ("'a' | replace('.' * 40, 'b')", "[{}] | selectattr('.' * 33 ~ 'b') | list", "without end"),
    ("'%99d' % 1", "'%100d' % 1", "huge or a computed width"),
    ("'%5d' % 1", "'%*d' % (5, 1)", "huge or a computed width"),
    ("'%.5f' % 1.5", "'%.*f' % (5, 1.5)", "huge or a computed width"),
    ("'%.99f' % 1.5", "'%.100f' % 1.5", "huge or a computed width"),
    ("'%5d%%%5d' % (1, 2)", "'%5d%%%500d' % (1, 2)", "huge or a computed width"),
    ("'%(a)5s' | format(a=1)", "'%(a)500s' | format(a=1)", "huge or a computed width"),
    ("'{:99}'.format(1)", "'{:100}'.format(1)", "huge width"),
    ("'{:{}}'.format(1, 99)", "'{:{}}'.format(1, 100)", "huge width"),
    ("2 ** 2048 > 1", "2 ** 2049 > 1", "huge number"),
    ("2 ** 2048 * 2 ** 2046 > 1", "2 ** 2048 * 2 ** 2047 > 1", "huge number"),
    ("'a'.strip('b' * 9999)", "('a' * 26845).strip('b' * 10000)", "searches a huge text"),
    ("strftime_now('%Y%m')", "strftime_now('%09Y')", "padded field"),
    ("namespace(x_=1).x_", "namespace(_x=1)", "private name"),
]  # fmt: skip


@pytest.mark.parametrize(("allowed", "refused", "words"), LIMITS)
def test_a_limit_is_where_it_is_said_to_be(allowed, refused, words):
    ChatTemplate("{{ " + allowed + " }}").render([])
    with pytest.raises(JllamaError, match=words):
        ChatTemplate("{{ " + refused + " }}").render([])


@pytest.mark.parametrize(
    "how",
    [
        *("groupby(p)", "max(false, p)", "min(false, p)", "rejectattr(p)", "selectattr(p)", "sum(p)"),
        *(
            "sort(false, false, p)",
            "unique(false, p)",
            "map(attribute=p)",
            "join('', p)",
            "join(attribute=p)",
        ),
    ],
)
def test_a_path_of_attributes_has_parts_at_most_whoever_takes_it(how):
    source = "{% set x = [] | " + how + " %}"
    ChatTemplate(source).render([], p="a" + ".a" * 32)
    with pytest.raises(JllamaError, match="it asks for attributes of attributes without end"):
        ChatTemplate(source).render([], p="a" + ".a" * 33)


def test_a_text_with_many_dots_is_no_path():
    for source in ("{{ p | join }}", "{{ p | join(p) | length > 0 }}", "{{ [p, p] | join('') }}"):
        ChatTemplate(source).render([], p="a" + ".a" * 40)


@pytest.mark.parametrize("method", sorted(prices.SLOW_SEARCHES))
def test_a_slow_search_is_refused_where_the_lengths_product_is_too_large(method):
    source = (
        "{% set x = 'a' * n %}{% set y = x." + method + "('b' * 16383 ~ 'a') if n > 16384 or METHOD else 1 %}"
    )
    source = source.replace("METHOD", "false" if method == "rindex" else "true")
    ChatTemplate(source).render([], n=1 << 14)
    with pytest.raises(JllamaError, match="searches a huge text"):
        ChatTemplate(source).render([], n=(1 << 14) + 1)


def test_a_source_has_a_length_at_most():
    ChatTemplate("x" * MAX_SOURCE_CHARS)
    with pytest.raises(JllamaError, match="longer than 65536 characters"):
        ChatTemplate("x" * (MAX_SOURCE_CHARS + 1))


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}, lambda value: (value,)])
def test_data_nests_a_hundred_deep_at_most(wrap):
    value = "x"
    for _ in range(100):
        value = wrap(value)
    ChatTemplate("x").render([], extra=value)
    with pytest.raises(JllamaError, match="nest deeper than 100"):
        ChatTemplate("x").render([], extra=wrap(value))


@pytest.mark.parametrize("key", [(1, 2), frozenset({1}), b"x"])
def test_keys_of_data_are_plain_too(key):
    with pytest.raises(JllamaError, match="plain data"):
        ChatTemplate("x").render([], extra={key: 1})


def test_text_of_another_class_is_read_as_the_text_it_is():
    class Shouting(str):
        def __str__(self):
            return self.upper() + "!"

    assert ChatTemplate("{{ extra }}{{ extra.x }}").render([], extra=Shouting("a")) == "a"


@pytest.mark.parametrize("flag", [True, False, 1, 0, None])
def test_whether_an_answer_is_to_begin_is_a_truth_value(flag):
    template = ChatTemplate("{{ add_generation_prompt }}{{ add_generation_prompt is boolean }}")
    assert template.render([], flag) == f"{bool(flag)}True"
    assert template.render([]) == "TrueTrue"
    assert str(template.trace([])) == "TrueTrue"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ messages.x.y }}", "it wants what the messages do not have: 'list object' has no attribute 'x'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it nests too deeply"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ open }}{{ [1] | batch(0) }}", "the chat template is refused: it makes huge batches"),
        ("{{ raise_exception(5) }}", "the chat template says: 5"),
    ],
)
def test_a_failure_is_told_in_words(source, words):
    with pytest.raises(JllamaError) as error:
        ChatTemplate(source).render([])
    assert words in str(error.value)


@pytest.mark.parametrize("source", ["{% include 'x' %}", "{{ " + "(" * 5000 + " }}"])
def test_what_is_refused_before_it_renders_is_told_too(source):
    with pytest.raises(JllamaError, match="the chat template is refused"):
        ChatTemplate("\n" + source)


@pytest.mark.parametrize("messages", [None, [], ()])
def test_a_conversation_may_have_no_messages(messages):
    assert ChatTemplate("{{ messages }}{{ messages | length }}").render(messages) == "[]0"


def test_known_roles_are_the_programs_and_others_are_given():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    talk = [
        {"role": "user", "content": "a"},
        {"role": "x", "content": "b"},
        {"role": "system", "content": ""},
    ]
    made = template.trace(talk)
    assert (str(made), made.origins) == ("useraxbsystem", "ttttgggtttttt")
    assert talk[0] == {"role": "user", "content": "a"}
    odd = [{"role": ["user"], "content": ""}, {"role": None, "content": ""}, {"content": "x"}, "text"]
    assert template.render(odd) == "['user']Nonex"
