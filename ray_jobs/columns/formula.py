"""Formulas over columns, such as `where(quantity > 0, price * quantity, 0)`: a small language, not Python.

Numbers are floats; a comparison is true or false. Where a column that a formula uses is empty, so is what comes out.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import reduce
from typing import Any

from ray_jobs.command import JobError

# What of numpy does it.
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide",
    ast.FloorDiv: "floor_divide", ast.Mod: "remainder", ast.Pow: "power",
}  # fmt: skip
SIGNS: dict[type[ast.unaryop], str] = {ast.USub: "negative", ast.UAdd: "positive"}
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater", ast.GtE: "greater_equal",
    ast.Eq: "equal", ast.NotEq: "not_equal",
}  # fmt: skip
# By name: numpy's function, and how many values it takes.
FUNCTIONS = {"abs": ("absolute", 1, 1), "log": ("log", 1, 1), "exp": ("exp", 1, 1), "sqrt": ("sqrt", 1, 1),
             "min": ("minimum", 2, 99), "max": ("maximum", 2, 99), "where": ("where", 3, 3)}  # fmt: skip
LONGEST = 1000


def parse(text: str) -> ast.expr:
    """What a formula says; an error names the part of it that is not of the language."""
    if len(text) > LONGEST:
        raise JobError(f"a formula of {len(text)} characters: {LONGEST} at most")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        check(tree)
    except (SyntaxError, ValueError) as error:
        raise JobError(f"{text!r} is no formula: {getattr(error, 'msg', error)}") from error
    except (RecursionError, MemoryError):
        raise JobError(f"{text[:60]!r}... is nested too deeply") from None
    return tree


def check(node: ast.expr) -> None:
    """Stop at the first part that is not of the language."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if abs(value) > 1e300:
                raise JobError(f"{str(value)[:20]} is too large a number for a formula")
        case ast.Name(id=name) if name not in FUNCTIONS:
            pass
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in ARITHMETIC:
            check(left)
            check(right)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in SIGNS:
            check(operand)
        case ast.Compare(left=left, ops=signs, comparators=others) if all(type(sign) in COMPARISONS for sign in signs):
            for part in (left, *others):
                check(part)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            _, least, most = FUNCTIONS[name]
            if not least <= len(arguments) <= most:
                wanted = f"{least}" if least == most else f"{least} or more"
                raise JobError(f"{name} takes {wanted} values, not {len(arguments)}")
            for part in arguments:
                check(part)
        case _:
            raise JobError(
                f"{ast.unparse(node)[:60]!r} is not of the language: columns, numbers, + - * / // % **, comparisons, "
                f"{', '.join(FUNCTIONS)}"
            )


def names(tree: ast.expr) -> list[str]:
    """The columns it uses."""
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions})


def value(node: ast.expr, columns: Mapping[str, Any]) -> Any:
    """What it comes to for each row, of columns as numpy has them."""
    import numpy

    match node:
        case ast.Constant(value=number):
            return float(number)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return columns[name]
        case ast.BinOp(left=left, op=operator, right=right):
            # dtype: true + true is 2.
            return getattr(numpy, ARITHMETIC[type(operator)])(value(left, columns), value(right, columns), dtype=float)
        case ast.UnaryOp(op=sign, operand=operand):
            return getattr(numpy, SIGNS[type(sign)])(value(operand, columns), dtype=float)
        case ast.Compare(left=left, ops=signs, comparators=others):
            parts = [value(part, columns) for part in (left, *others)]
            pairs = zip(signs, parts, parts[1:], strict=False)
            return reduce(numpy.logical_and, (getattr(numpy, COMPARISONS[type(sign)])(*pair) for sign, *pair in pairs))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            parts = [value(part, columns) for part in arguments]
            function = getattr(numpy, FUNCTIONS[name][0])
            if name == "where":
                return function(numpy.asarray(parts[0], dtype=bool), *parts[1:])
            if len(parts) == 1:
                return function(parts[0], dtype=float)
            return reduce(lambda one, other: function(one, other, dtype=float), parts)
    raise AssertionError(ast.dump(node))


def column(tree: ast.expr, columns: Mapping[str, Any], rows: int) -> tuple[Any, Any]:
    """The new column, and where it could not be computed: division by zero, the root of a negative number."""
    import numpy
    import pyarrow
    from pyarrow import compute

    used = names(tree)
    empty = numpy.zeros(rows, bool)
    plain = {}
    for name in used:
        values = columns[name]
        if values.null_count:
            empty |= compute.is_null(values).to_numpy(zero_copy_only=False)
            values = values.fill_null(False if pyarrow.types.is_boolean(values.type) else 0)
        plain[name] = values.to_numpy(zero_copy_only=False)
    with numpy.errstate(all="ignore"):
        found = numpy.broadcast_to(value(tree, plain), rows)
    wrong = ~numpy.isfinite(found) & ~empty
    return pyarrow.array(found, mask=empty | wrong), wrong
