"""The request types accept rows within the bounds and name the field of anything else."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.model_metadata import Feature
from service.schema import Schema

FEATURES = [Feature("length", 0.0, 12.0), Feature("width", -1.5, 7.0), Feature("height", 3.0, 3.5)]
SCHEMA = Schema(FEATURES)
ONE: Any = SCHEMA.one
BATCH: Any = SCHEMA.batch
MARK = "MARK"  # stands for any text of a client

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.just(MARK)
)
GOOD_ROWS = st.tuples(*(st.floats(feature.min, feature.max) for feature in FEATURES))
NEARLY_ROWS = st.lists(st.one_of(st.sampled_from([0, 3.25, 12, 13, -1.5, -2, 1e300]), VALUES), max_size=4)
ANYTHING = st.recursive(
    VALUES, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.just(MARK), inner))
)
DOCUMENTS = st.one_of(
    ANYTHING,
    st.fixed_dictionaries(
        {"features": st.one_of(ANYTHING, NEARLY_ROWS, st.lists(st.one_of(GOOD_ROWS, NEARLY_ROWS, VALUES)))},
        optional={MARK: VALUES},
    ),
)


@pytest.mark.parametrize("request_type", [ONE, BATCH], ids=["one", "batch"])
@settings(max_examples=300, deadline=None, database=None)
@given(document=DOCUMENTS)
def test_any_document_is_within_the_bounds_or_gets_a_short_error_without_an_echo(
    request_type: type[Any], document: object
) -> None:
    try:
        request = msgspec.json.decode(json.dumps(document), type=request_type)
    except msgspec.ValidationError as error:
        detail = SCHEMA.explain(error, request_type)
        assert "features" in detail or "object" in detail
        assert MARK not in detail
        assert len(detail) < 200
        assert "`" not in detail
        assert "$" not in detail
    else:
        rows = [request.features] if request_type is ONE else request.features
        for row in rows:
            assert all(f.min <= value <= f.max for f, value in zip(FEATURES, row, strict=True))


@settings(max_examples=100, deadline=None, database=None)
@given(rows=st.lists(GOOD_ROWS, min_size=1, max_size=20))
def test_every_row_within_the_bounds_is_decoded_unchanged(rows: list[tuple[float, ...]]) -> None:
    assert msgspec.json.decode(json.dumps({"features": rows}), type=BATCH).features == rows
    for row in rows:
        assert msgspec.json.decode(json.dumps({"features": row}), type=ONE).features == row
