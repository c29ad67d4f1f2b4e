"""llama.cpp's grammars, byte by byte."""

import pytest

from jllama.errors import JllamaError

pytest.importorskip("llguidance")
from jllama.grammar.compiler import compiled
from tests.support.schema_matching import byte_words, takes

ESCAPES = r'root ::= "\n" "\t" "\"" "\\" "\x41" "\u00e9" "\U0001F600"'
SUM = 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= "(" expr ")" | [0-9]+'


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "a" | "b"\n', ["a", "b"], ["ab", ""]),
        ("root ::= [a-c]+ # one ::= two\n", ["abc"], ["d", ""]),
        ("root ::= [^a-c]{2,3}", ["xy", "x\n"], ["xa", "wxyz"]),
        ("root ::= .{2}", ["x\n", "é."], ["x", "xyz"]),
        ('root ::= "a"{2,2} [\\u00e9\\u0142]{ 1 , 1 }', ["aaé", "aał"], ["aé", "aaaé", "aaéé", "aax"]),
        (ESCAPES, ['\n\t"\\Aé😀'], ["\n\t"]),
        (r"root ::= [\]\x41-\x43\u005E&~-]", ["]", "B", "^", "&", "~", "-"], ["D", "\\"]),
        ('root ::= a-b a_b\na-b ::= "1"\na_b ::= "2"', ["12"], ["1"]),
        ('root ::= start 1st if\nstart ::= "x"\n1st ::= "y"\nif ::= "z"', ["xyz"], ["xz"]),
        ('root ::= A a\nA ::= "1" a\na ::= "2"', ["122"], ["12"]),
        ('root ::= ("a" |\n "b")* "c"?', ["abab", "c", ""], ["cc"]),
        ('root ::= root "a" | "b"', ["baa"], ["ab"]),
        ('root ::= ("a"{2}){2} ( "b"+ ) ?', ["aaaa", "aaaabb"], ["aaa", "aaaaaa"]),
        ('root ::= ("a"?){3} [*] ("b"*)+ "+" ("c"){,2}', ["aa*+", "*b+cc"], ["aaaa*+", "*+ccc"]),
        (
            'root ::= n "\\n" n s "RULE1"\nn ::= [0-9]+ s\ns ::= [ \\n]*',
            ["3 \n\n4RULE1"],
            ["3 4RULE1", "3\n4rule1"],
        ),
        (SUM, ["1+(2+3)"], ["1+", "(1"]),
        ('root ::= x ""{2} y "!<z>"{0,}\nx ::= ""\ny ::= | "a"', ["", "a!<z>"], ["aa"]),
    ],
)
def test_they_let_come_what_they_say(grammar, good, bad):
    matcher = compiled(byte_words()[1], "grammar", grammar)
    assert [text for text in good if not takes(matcher, text)] == []
    assert [text for text in bad if takes(matcher, text)] == []


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('x ::= "a"', "No 'root' rule"),
        ("root ::= my-rule", "Rule 'my-rule' not found"),
        ('root ::= "a', "Unexpected end of input"),
        (r'root ::= "\q"', "Invalid escape sequence"),
        (r'root ::= "\ud800"', r"^grammar can't be used: .*is no character"),
        ("root ::= [a--b]", "twice in a class"),
        ('root ::= "a"\n "b"{ 0 }', r"\{ 0 \} in line 2 lets nothing come"),
        ("root ::= x{,0}", r"\{,0\} in line 1 lets nothing come"),
        ('root ::= "a"{3,1}', r"\{3,1\} in line 1 ends before it begins"),
        ('root ::= "a"{}', "Expected integer at line 1"),
        ('root ::= "<a>" !<think>*', "!<think> in line 1 is about a single token"),
        ('root ::= [<!>] # <\n <[5]> "b"', r"<\[5]> in line 2 is about a single token"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nest too deep"),
        ("root ::= root", "nothing matches it"),
    ],
    ids=range(14),
)
def test_what_is_none_is_refused_with_the_place(grammar, words):
    with pytest.raises(JllamaError, match=words):
        compiled(byte_words()[1], "grammar", grammar)
