"""Every merge method tells its formula, when to use it and its paper, and the page of methods is up to date."""

import importlib.util
import re
from pathlib import Path

import pytest

import surgeon

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"
OWN = {name: one for name, one in surgeon.list_methods().to_dict()["methods"].items() if "/" not in name}
REMEDY = "run `PYTHONPATH=.:cli python benchmarks/methods_page.py --measured docs/merging.md --out docs/methods.md`"


def paragraphs(name):
    return [" ".join(part.split("\n")) for part in OWN[name]["documentation"].split("\n\n")]


def sections(page):
    """Name → its lines, without what was measured."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    found = {}
    for part in parts:
        title, *lines = part.strip().split("\n")
        found[title] = [line for line in lines if not line.startswith("- Measured")]
    return found


@pytest.fixture(scope="module")
def fresh():
    spec = importlib.util.spec_from_file_location("methods_page", ROOT / "benchmarks" / "methods_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sections(module.page(None))


@pytest.mark.parametrize("name", OWN)
def test_a_docstring_says_formula_use_and_paper(name):
    summary, formula, *others = paragraphs(name)
    assert re.fullmatch(r"[A-Z].*\.", summary)
    assert re.match(r"Formula: \S+ = ", formula)
    assert [part for part in others if re.match(r"Use it .*\.$", part)]
    assert re.match(r"Paper: (https://\S+|none[.;])", others[-1])


@pytest.mark.parametrize("name", OWN)
def test_the_page_holds_the_method_as_it_is(name, fresh):
    assert sections(PAGE.read_text(encoding="utf-8")).get(name) == fresh[name], REMEDY


def test_the_page_holds_no_other_methods():
    assert set(sections(PAGE.read_text(encoding="utf-8"))) == set(OWN), REMEDY
