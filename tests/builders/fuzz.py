"""Strategies of hypothesis: valid documents with mistakes in them, and the values that people and programs get wrong.

By default each test tries few inputs, the same ones every time. `make fuzz` tries more, and others in each run. The
variable VITRIM_FUZZ_EXAMPLES says how many.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NUM_EXAMPLES = int(os.environ.get("VITRIM_FUZZ_EXAMPLES", "0"))


def tried(default: int) -> settings:
    """How many inputs a test tries: `default`, or as many as the variable says."""
    return settings(
        max_examples=NUM_EXAMPLES or default,
        derandomize=not NUM_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def nested(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


ODD_NUMBERS = [0, -1, 1, 2, 3, 2**31, 2**32, 2**63, 2**64, -(2**64), 10**30, -(10**30)]
ODD_FLOATS = [0.0, -0.0, 0.5, 1.0, 3.0, 1e-300, 5e-324, 1e300, -1e300, float("nan"), float("inf"), -float("inf")]
ODD_TEXTS = [
    *("", " ", "auto", "full", "measured", "true", "nan", "1e3", "0x10", "1_000", "\u0663", "+5", "-0", "none", "../x"),
    *("\0", "\n", "\r\n", "\x1b[31m", "\u202egnp", "\udcff", "\ud800", "\ufeff", "[red]", "{x}", "%s", "a.b", "=", '"'),
    *("a\u0301", "\U0001f600"),
]
numbers = st.one_of(
    st.integers(-20, 40),
    st.sampled_from(ODD_NUMBERS),
    st.integers(),
    st.integers(30, 4000).map(lambda digits: 10**digits),
)
floats = st.one_of(st.floats(-2, 2), st.sampled_from(ODD_FLOATS), st.floats())
long_texts = st.sampled_from("x9[{").map(lambda character: 6_000 * character)
texts = st.one_of(st.sampled_from(ODD_TEXTS), long_texts, st.text(max_size=20))
plain = st.one_of(st.booleans(), numbers, floats, texts)
values = st.one_of(  # of TOML; JSON also has none
    plain,
    st.lists(plain, max_size=4),
    st.dictionaries(texts, plain, max_size=3),
    st.integers(0, 60).map(nested),
)
json_values = st.one_of(st.none(), values)
python_values = st.one_of(
    json_values,
    st.sampled_from(
        [np.int64(3), np.int8(-1), np.float32(0.5), np.float64("nan"), np.bool_(True), np.zeros(3), np.array(2)]
    ),
    st.sampled_from([b"1", 1j, object(), int, (1, 2), {1}, range(3)]),
)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Each value of a document, as its container and its key there."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in list(keys):
        yield document, key
        yield from places(document[key])


@st.composite
def mutated(draw: Any, document: Any, junk: st.SearchStrategy[Any] = json_values) -> Any:
    """A document with one to three mistakes: a value of another type, a missing, renamed or additional key."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        possible = list(places(found))
        if not possible:
            return draw(junk)
        container, key = draw(st.sampled_from(possible))
        kind = draw(st.sampled_from(["value", "value", "value", "number", "missing", "renamed", "copied", "wrapped"]))
        if kind == "value":
            container[key] = draw(junk)
        elif kind == "number":
            container[key] = draw(st.one_of(numbers, floats))
        elif kind == "wrapped":
            container[key] = [container[key]]
        elif kind == "missing":
            del container[key]
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            value = container.pop(key) if kind == "renamed" else copy.deepcopy(container[key])
            container[draw(texts)] = value
    return found


@st.composite
def damaged(draw: Any, text: str) -> str:
    """A text with characters that were removed, repeated or added in up to three places."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 1, 2, 10, 1000])))
        added = draw(st.one_of(st.sampled_from(["", "{", "}", "]", ",", '"', "\n", "\0", "="]), texts))
        text = text[:start] + added + (text[end:] if draw(st.booleans()) else text[start:])
    return text
