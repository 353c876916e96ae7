"""One-line mutants of a source file, from its syntax tree."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all",
    "all": "any", "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones",
    "mean": "sum", "sum": "mean", "floor": "ceil", "ceil": "floor", "argmin": "argmax",
    "flatnonzero": "nonzero", "rsqrt": "sqrt", "expm1": "exp",
}  # fmt: skip
_SYMMETRIC = {"min", "max", "minimum", "maximum", "array_equal", "promote_types"}
_DROPPED_METHODS = {"detach", "square", "abs", "double", "flip", "clamp", "exp"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one expression or statement."""

    path: str  # from the root of the repository
    line: int
    before: str
    after: str
    source: str  # the whole mutated file
    name: str = ""  # of a mutant of the list

    @property
    def key(self) -> str:
        """Tells it apart from every other, and from itself on another source."""
        return hashlib.sha256(f"{self.path}\n{self.source}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return f"{name}{self.path}:{self.line}: {_one_line(self.before)} -> {_one_line(self.after)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:90]


def replaced(root: Path, path: str, old: str, new: str, name: str) -> Mutant:
    """A mutant given by its text; `old` must occur exactly once."""
    text = (root / path).read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{name}: {path} holds {old!r} {text.count(old)} times, not once")
    line = text[: text.index(old)].count("\n") + 1
    return Mutant(path, line, old, new, text.replace(old, new), name)


def mutants(root: Path, path: str) -> list[Mutant]:
    """All mutants of a file that compile, in the order of their lines."""
    text = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    found: dict[str, Mutant] = {}
    for node in _code(tree):
        for new in _changes(node):
            changed = _spliced(text, node, new)
            if changed is None:
                continue
            before = ast.get_source_segment(text, node) or ""
            mutant = Mutant(path, node.lineno, before, ast.unparse(new), changed)
            found.setdefault(mutant.key, mutant)
    return sorted(found.values(), key=lambda m: (m.line, m.after))


def _code(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes whose change a test could notice: no annotation, message, docstring or import."""
    for child in _parts(node):
        if isinstance(child, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)):
            continue
        if isinstance(child, ast.If) and _is_type_checking(child):
            continue
        if isinstance(child, ast.ClassDef) and any(
            isinstance(base, ast.Name) and base.id == "Protocol" for base in child.bases
        ):
            continue
        if isinstance(child, (ast.expr, ast.stmt)):
            yield child
        yield from _code(child)


def _parts(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.AnnAssign):
        return [node.value] if node.value is not None else []
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return list(node.body)
    return list(ast.iter_child_nodes(node))


def _is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _changes(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _with(node, ops=[_COMPARE[type(node.ops[0])]()])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_text(node):
        yield _with(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and _is_flag(node.test):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def _with(node: ast.expr | ast.stmt, **fields: object) -> ast.expr | ast.stmt:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, (ast.JoinedStr, ast.List, ast.Tuple))
        or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
    )


def _is_flag(test: ast.expr) -> bool:
    return isinstance(test, (ast.Name, ast.Attribute, ast.Call))


def _constants(node: ast.Constant) -> Iterator[ast.expr]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    plain = (ast.Name, ast.Attribute)
    for i in range(len(node.args) - 1):
        first, second = node.args[i : i + 2]
        if isinstance(first, plain) and isinstance(second, plain) and not _is_symmetric(node):
            swapped = [*node.args[:i], second, first, *node.args[i + 2 :]]
            yield _with(node, args=swapped)  # type: ignore[misc]
    for i in range(len(node.keywords) - 1):
        first, second = node.keywords[i : i + 2]
        if isinstance(first.value, plain) and isinstance(second.value, plain):
            pair = [ast.keyword(first.arg, second.value), ast.keyword(second.arg, first.value)]
            yield _with(node, keywords=[*node.keywords[:i], *pair, *node.keywords[i + 2 :]])  # type: ignore[misc]
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        yield _with(node, func=ast.Name(_NAMES[node.func.id]))  # type: ignore[misc]
    if isinstance(node.func, ast.Attribute):
        if node.func.attr in _NAMES:
            renamed = ast.Attribute(node.func.value, _NAMES[node.func.attr])
            yield _with(node, func=renamed)  # type: ignore[misc]
        if node.func.attr in _DROPPED_METHODS:
            yield node.func.value


def _is_symmetric(node: ast.Call) -> bool:
    """Whether the order of two arguments says nothing."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in _SYMMETRIC


def _spliced(text: str, node: ast.expr | ast.stmt, new: ast.expr | ast.stmt) -> str | None:
    """The file with the node's text replaced, or None where that is no valid file."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    lines = text.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    if isinstance(node, (ast.If, ast.While)):  # the test alone, not the branches
        return _spliced(text, node.test, new.test)  # type: ignore[union-attr]
    written = ast.unparse(new)
    if isinstance(new, ast.expr) and not isinstance(new, ast.Constant):
        written = f"({written})"
    changed = text.encode()[:start] + written.encode() + text.encode()[end:]
    try:
        compile(changed, "mutant", "exec")
    except (SyntaxError, ValueError):
        return None
    return changed.decode()
