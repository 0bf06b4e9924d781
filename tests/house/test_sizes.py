"""Small files, small functions, all documented and annotated."""

import ast
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "surgeon").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def length(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def lines(function):
    return function.end_lineno - function.lineno + 1


def public(body):
    """Public classes and functions of a module, methods included, and no others."""
    for node in body:
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def is_overload(node):
    return any("overload" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ()))


def unannotated(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    variadic = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    bare = [argument.arg for argument in (*named, *variadic) if argument.annotation is None]
    return [name for name in bare if name not in ("self", "cls")] + ([] if function.returns else ["return"])


def test_no_file_is_long():
    assert {path.name: length(path) for path in FILES if length(path) > 350} == {}


def test_no_function_is_long():
    long = {
        f"{name}:{f.lineno} {f.name}": lines(f)
        for name, tree in TREES.items()
        for f in functions(tree)
        if lines(f) > 60
    }
    assert long == {}


def test_most_are_small(record_testsuite_property):
    sizes = [length(path) for path in FILES if length(path) > 5]
    spans = [lines(function) for tree in TREES.values() for function in functions(tree)]
    found = {
        "lines": sum(map(length, FILES)),
        "file_median": median(sizes),
        "function_median": median(spans),
        "function_p90": quantiles(spans, n=10)[-1],
    }
    for name, value in found.items():
        record_testsuite_property(name, value)
    print(found)
    assert found["file_median"] <= 110
    assert found["function_median"] <= 8
    assert found["function_p90"] <= 30


@pytest.mark.parametrize("name", TREES)
def test_documented(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), "a module says first what it is"
    bare = [node for node in public(tree.body) if not ast.get_docstring(node)]
    assert [node.name for node in bare if not _explained_elsewhere(node)] == []


def _explained_elsewhere(node):
    """An overload by its implementation, a setter by its getter, an override by what it overrides."""
    marks = [ast.unparse(decorator) for decorator in node.decorator_list]
    return is_overload(node) or any(mark.endswith(".setter") or mark == "override" for mark in marks)


@pytest.mark.parametrize("name", TREES)
def test_annotated(name):
    bare = {f"{f.lineno} {f.name}": unannotated(f) for f in functions(TREES[name]) if unannotated(f)}
    assert bare == {}


@pytest.mark.parametrize("name", TREES)
def test_no_error_is_swallowed(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            assert not (broad and silent), f"line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            raise AssertionError(f"line {node.lineno}: suppress")
