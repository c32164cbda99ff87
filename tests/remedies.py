"""Every remedy in the package, as text, from the source."""

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imatrix_lab

PACKAGE = Path(imatrix_lab.__file__).parent
FILLED = "\N{BULLET}"
"""Stands for what is only known when the error occurs."""
_TABLES = {"_DEATHS": 1, "_KINDS": 2}
"""Tables of remedies, and the place of each in its row."""


@dataclass(frozen=True)
class Remedy:
    """What an error tells the user to try, with `FILLED` in place of what varies."""

    where: str
    text: str


def all_remedies() -> list[Remedy]:
    """Return every remedy that is written in the package."""
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "_data" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            where = str(path.relative_to(PACKAGE))
            result += [Remedy(f"{where}:{line}", text) for line, text in _in_module(tree)]
    return list(dict.fromkeys(result))


def _in_module(tree: ast.Module) -> Iterator[tuple[int, str]]:
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            known = _local(list(ast.walk(function)), constants)
            values = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
            texts = [text for value in values if value for text in _texts(value, known)]
            constants[f"{function.name}()"] = _any(texts)
    for name, column in _TABLES.items():
        if isinstance(table := constants.get(name), ast.Dict):
            for row in table.values:
                assert isinstance(row, ast.Tuple), f"{name} has rows that are no tuples"
                yield from ((row.lineno, text) for text in _texts(row.elts[column], constants))
    module = constants
    for scope in _scopes(tree):
        constants = _local(scope, module)
        begun: list[tuple[int, str]] = []
        for node in scope:
            match node:
                case ast.keyword("fix", value) if not isinstance(value, ast.Name):
                    yield from ((value.lineno, text) for text in _texts(value, constants))
                case ast.keyword("fix", ast.Name(name) as value) if name in constants:
                    yield from ((value.lineno, text) for text in _texts(value, constants))
                case ast.Call(ast.Name("Finding"), [_, _, _, value]):
                    yield from ((value.lineno, text) for text in _texts(value, constants))
                case ast.Assign([ast.Name("fix") | ast.Attribute(attr="fix")], value):
                    yield from begun
                    begun = [(value.lineno, text) for text in _texts(value, constants)]
                case ast.AugAssign(ast.Name("fix"), ast.Add(), value):
                    more = _texts(value, constants)
                    begun = [(line, a + b) for (line, a), b in itertools.product(begun, more)]
        yield from begun


def _local(nodes: list[ast.AST], constants: dict[str, ast.expr]) -> dict[str, ast.expr]:
    """Return constants with the texts that a function gives to names of its own."""
    known = dict(constants)
    for node in sorted((n for n in nodes if isinstance(n, ast.Assign)), key=_place):
        match node:
            case ast.Assign(
                [ast.Name(name)], ast.Constant(str()) | ast.JoinedStr() | ast.IfExp()
            ) if name != "fix":
                old = _texts(known[name], known) if name in known else []
                known[name] = _any([*old, *_texts(node.value, known)])
    return known


def _any(texts: list[str]) -> ast.expr:
    """Return an expression that is one of some texts."""
    return ast.BoolOp(ast.Or(), [ast.Constant(text) for text in dict.fromkeys(texts)])


def _scopes(tree: ast.Module) -> list[list[ast.AST]]:
    """Return the nodes of each function, in order of the source."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    scopes = [[n for n in ast.walk(tree) if id(n) not in inside]]
    for function in functions:
        nodes = [n for n in ast.walk(function) if hasattr(n, "lineno")]
        keywords = [n for n in ast.walk(function) if isinstance(n, ast.keyword)]
        scopes.append(sorted({id(n): n for n in (*nodes, *keywords)}.values(), key=_place))
    return scopes


def _place(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _texts(node: ast.expr, constants: dict[str, ast.expr]) -> list[str]:
    """Return what an expression can be, as far as the source says."""
    match node:
        case ast.Constant(value):
            return [] if value is None else [str(value)]
        case ast.JoinedStr(values):
            return _product(values, constants)
        case ast.BinOp(left, ast.Add(), right):
            return _product([left, right], constants)
        case ast.Call(ast.Name("pip_install"), words):
            return ["pip install " + " ".join(_product([w], constants)[0] for w in words)]
    texts = (text for part in _parts(node, constants) for text in _texts(part, constants))
    return list(texts) or [FILLED]


def _parts(node: ast.expr, constants: dict[str, ast.expr]) -> list[ast.expr]:
    """Return the expressions that one can be."""
    match node:
        case ast.FormattedValue(value):
            return [value]
        case ast.IfExp(_, body, orelse):
            return [body, orelse]
        case ast.BoolOp(_, values):
            return values
        case ast.Name(name) | ast.Attribute(_, name) | ast.Call(ast.Name(name)):
            name += "()" if isinstance(node, ast.Call) else ""
            return [constants[name]] if name in constants else []
        case ast.Call(ast.Attribute(ast.Constant(str()), "join"), [ast.GeneratorExp(element)]):
            return [element]
    return []


def _product(nodes: list[ast.expr], constants: dict[str, ast.expr]) -> list[str]:
    parts = [_texts(node, constants) or [""] for node in nodes]
    return ["".join(words) for words in itertools.product(*parts)]
