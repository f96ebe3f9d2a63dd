"""The types a column can have: which one fits some text, and a column as that type, with what does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

Kind = Literal["int", "float", "bool", "datetime", "str"]
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")
INT = r"^[+-]?\d{1,18}$"
FLOAT = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
# A leading zero is part of a name: a postcode, an article number.
NAMED = r"^[+-]?0\d+$"


def arrow(kind: Kind) -> Any:
    """Arrow's type for it."""
    import pyarrow

    return {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "str": pyarrow.string(),
            "datetime": pyarrow.timestamp("us", "UTC")}[kind]  # fmt: skip


def kind_of(found: Any) -> Kind | None:
    """Ours for Arrow's type; None for lists and the like."""
    from pyarrow import types

    if types.is_dictionary(found):
        found = found.value_type
    if types.is_integer(found):
        return "int"
    if types.is_floating(found) or types.is_decimal(found):
        return "float"
    if types.is_boolean(found):
        return "bool"
    if types.is_timestamp(found) or types.is_date(found):
        return "datetime"
    if types.is_string(found) or types.is_large_string(found) or types.is_string_view(found) or types.is_null(found):
        return "str"
    return None


def widest(kinds: Iterable[Kind | None]) -> Kind:
    """One type for what is of several in several files; None is a column that was empty there."""
    known = {kind for kind in kinds if kind}
    if len(known) == 1:
        return known.pop()
    return "float" if known == {"int", "float"} else "str"


def tidy(text: Any) -> Any:
    """Without white space around it; what is empty then is missing."""
    from pyarrow import compute

    trimmed = compute.utf8_trim_whitespace(text)
    return compute.if_else(compute.equal(trimmed, ""), None, trimmed)


def guess(values: Any) -> Kind | None:
    """The narrowest type that holds every value that is not empty; None when all are."""
    from pyarrow import compute, types

    if values.null_count == len(values) or not types.is_string(values.type):
        return None if values.null_count == len(values) else kind_of(values.type)
    filled = tidy(values).drop_null()

    def all_match(pattern: str) -> bool:
        return bool(compute.all(compute.match_substring_regex(filled, pattern)).as_py())

    if not len(filled):
        return None
    if all_match(FLOAT):
        named = compute.any(compute.match_substring_regex(filled, NAMED)).as_py()
        return "str" if named else "int" if all_match(INT) else "float"
    if all_match(r"(?i)^(true|yes|false|no)$"):
        return "bool"
    if all_match(r"^\d{4}-\d\d-\d\d") and moments(filled)[0].null_count == 0:
        return "datetime"
    return "str"


def typed(values: Any, kind: Kind) -> tuple[Any, Any]:
    """The column as its type, and which of its values do not fit: None when all do. An empty value is a missing one."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if types.is_null(values.type):
        return pyarrow.nulls(len(values), arrow(kind)), None
    if types.is_large_string(values.type) or types.is_string_view(values.type):
        values = compute.cast(values, pyarrow.string())
    if types.is_string(values.type):
        return {"int": whole, "float": real, "bool": truth, "datetime": moments, "str": words}[kind](values)
    if types.is_decimal(values.type) or types.is_floating(values.type):
        values = compute.cast(values, pyarrow.float64())
        values = compute.if_else(compute.is_nan(values), None, values)
        wrong = compute.is_inf(values)
        if kind == "int":
            wrong = compute.or_(
                compute.not_equal(compute.floor(values), values), compute.greater(compute.abs(values), 1e18)
            )
        if kind in ("int", "float"):
            return compute.cast(compute.if_else(wrong, None, values), arrow(kind)), wrong
    if types.is_boolean(values.type) and kind in ("int", "float"):
        return compute.cast(values, arrow(kind)), None
    if kind == kind_of(values.type) or (kind == "float" and types.is_integer(values.type)):
        if types.is_uint64(values.type):
            wrong = compute.greater(values, 2**63 - 1)
            return compute.cast(compute.if_else(wrong, None, values), arrow(kind), safe=False), wrong
        # Not `safe`: digits of a time below a microsecond go, and so may the last ones of a large integer.
        return compute.cast(values, arrow(kind), safe=False), None
    return typed(compute.cast(values, pyarrow.string()), kind)


def words(text: Any) -> tuple[Any, Any]:
    return tidy(text), None


def truth(text: Any) -> tuple[Any, Any]:
    import pyarrow
    from pyarrow import compute

    lower = compute.utf8_lower(tidy(text))
    yes = compute.is_in(lower, pyarrow.array(TRUE))
    known = compute.or_(yes, compute.is_in(lower, pyarrow.array(FALSE)))
    return compute.if_else(known, yes, None), compute.and_not(compute.is_valid(lower), known)


def matching(text: Any, pattern: str, kind: Kind) -> tuple[Any, Any]:
    """What matches, as a number."""
    from pyarrow import compute

    text = tidy(text)
    fits = compute.match_substring_regex(text, pattern)
    # Arrow reads no integer with a plus.
    plain = compute.utf8_ltrim(compute.if_else(fits, text, None), "+")
    return compute.cast(plain, arrow(kind)), compute.invert(fits)


def whole(text: Any) -> tuple[Any, Any]:
    import pyarrow
    from pyarrow import compute

    # Arrow's own integers may be hexadecimal.
    if compute.all(compute.match_substring_regex(text, r"^-?\d{1,18}$")).as_py():
        return compute.cast(text, pyarrow.int64()), None
    return matching(text, INT, "int")


def real(text: Any) -> tuple[Any, Any]:
    import pyarrow
    from pyarrow import compute

    try:
        values = compute.cast(text, pyarrow.float64())
        if compute.all(compute.is_finite(values)).as_py():
            return values, None
    except pyarrow.ArrowInvalid:
        pass
    values, wrong = matching(text, FLOAT, "float")
    # 1e999 looks like a number.
    wrong = compute.or_kleene(wrong, compute.is_inf(values))
    return compute.if_else(wrong, None, values), wrong


def moments(text: Any) -> tuple[Any, Any]:
    """A time without a zone is one of UTC."""
    import pyarrow
    from pyarrow import compute

    for quick in (pyarrow.timestamp("us"), pyarrow.timestamp("us", "UTC")):
        try:
            return compute.cast(compute.cast(text, quick), arrow("datetime")), None
        except pyarrow.ArrowInvalid:
            continue
    import pandas

    text = tidy(text)
    series = pandas.Series(text.to_pylist(), dtype="str")
    found = pandas.to_datetime(series, errors="coerce", utc=True, format="ISO8601")
    values = pyarrow.array(found.dt.tz_convert(None).dt.as_unit("us"), from_pandas=True).cast(arrow("datetime"))
    return values, compute.and_(compute.is_valid(text), compute.is_null(values))
