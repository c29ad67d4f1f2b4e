"""The page's files: nothing from outside, nothing that its policy would refuse, short."""

import re
from pathlib import Path

import pytest

from tests.support.fake_chat_server import PAGE

FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())
PROGRAMS = [path for path in FILES if path.suffix == ".js"]
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML|srcdoc"
    r"|\beval\(|new Function|createContextualFragment"
)


def name(path):
    return str(path.relative_to(PAGE))


def test_the_page_is_html_programs_styles_and_a_sign():
    assert {path.suffix for path in FILES} == {".html", ".js", ".css", ".svg"}


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_programs_make_no_markup_of_text(path):
    assert not MARKUP.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_programs_are_short_and_import_what_is_there(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("//"), "a program begins with what it is for"
    assert len(lines) <= 250
    assert max(map(len, lines)) <= 110
    for target in re.findall(r'from "([^"]+)"', text):
        assert target.startswith("."), f"{target} is from outside"
        assert (path.parent / target).resolve() in PROGRAMS, f"{target} is not there"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_comes_from_outside(path):
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""(src|href|url|from|import)\s*[=(]?\s*["'(]\s*(https?:)?//""", text)


def test_the_html_has_no_program_and_no_style_of_its_own():
    assert re.findall(r"<script[^>]*>(.*?)</script>", HTML, re.S) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=", HTML)


def test_what_the_html_names_is_there():
    for target in re.findall(r'(?:href|src)="\./([^"]+)"', HTML):
        assert (PAGE / target).is_file(), target


def test_each_program_is_used():
    used = {PAGE / "js" / "main.js"}
    todo = [*used]
    while todo:
        path = todo.pop()
        for target in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8")):
            found = Path(path.parent / target).resolve()
            if found not in used:
                used.add(found)
                todo.append(found)
    assert used == set(PROGRAMS)
