"""Sampling parameters: what may come off the wire, and what is refused with the field's name."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.errors import FrameError, InvalidRequest
from helix_mq.packing import pack, unpack
from helix_mq.sampling import (
    MAX_LOGIT_BIAS,
    MAX_OUTPUT_TOKENS,
    MAX_STOP_TOKENS,
    MAX_TOP_LOGPROBS,
    SamplingParams,
)

VOCAB = 1000
FIELDS = SamplingParams.__struct_fields__

tokens = st.integers(0, VOCAB - 1)
valid = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 2**31 - 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.lists(st.tuples(tokens, st.floats(-100, 100)), max_size=5).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    max_tokens=st.integers(100, MAX_OUTPUT_TOKENS),
    min_tokens=st.integers(0, 100),
    stop_token_ids=st.lists(tokens, max_size=5).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.just(True),
    top_logprobs=st.integers(0, MAX_TOP_LOGPROBS),
)


@given(valid)
def test_valid_parameters_pass_and_travel_unchanged(params: SamplingParams) -> None:
    params.validate(VOCAB)
    assert unpack(pack(params), SamplingParams) == params


OUT_OF_RANGE: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 100.5),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", -1),
    ("top_k", 2**31),
    ("min_p", -0.01),
    ("min_p", 1.5),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 101.0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", ((5, 100.1),)),
    ("logit_bias", ((-1, 0.0),)),
    ("logit_bias", tuple((i, 0.0) for i in range(MAX_LOGIT_BIAS + 1))),
    ("seed", -1),
    ("max_tokens", 0),
    ("max_tokens", MAX_OUTPUT_TOKENS + 1),
    ("min_tokens", -1),
    ("stop_token_ids", (-1,)),
    ("stop_token_ids", tuple(range(MAX_STOP_TOKENS + 1))),
    ("top_logprobs", MAX_TOP_LOGPROBS + 1),
]
NOT_NUMBERS: list[tuple[str, Any]] = [
    (field, value)
    for field in (
        "temperature",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    )
    for value in (math.nan, math.inf, -math.inf)
] + [("logit_bias", ((1, math.nan),))]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE + NOT_NUMBERS)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    params = SamplingParams(**{field: value, "logprobs": True})
    with pytest.raises(InvalidRequest) as refusal:
        params.validate(VOCAB)
    assert refusal.value.param == field
    assert field in refusal.value.message


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE + NOT_NUMBERS)
def test_the_wire_carries_nothing_out_of_range(field: str, value: Any) -> None:
    plain = list(msgspec.to_builtins(SamplingParams()))
    plain[FIELDS.index(field)] = value
    with pytest.raises(FrameError) as refusal:
        unpack(msgpack.packb(plain), SamplingParams)
    assert refusal.value.reason == "bad_field"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (SamplingParams(min_tokens=5, max_tokens=4), "min_tokens"),
        (SamplingParams(top_logprobs=2), "top_logprobs"),
        (SamplingParams(logit_bias=((VOCAB, 1.0),)), "logit_bias"),
        (SamplingParams(stop_token_ids=(3, VOCAB)), "stop_token_ids"),
    ],
)
def test_what_does_not_fit_together_is_refused(params: SamplingParams, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        params.validate(VOCAB)
    assert refusal.value.param == param


def test_defaults_are_openai_s() -> None:
    params = SamplingParams()
    params.validate(VOCAB)
    assert (params.temperature, params.top_p) == (1.0, 1.0)
    assert (params.presence_penalty, params.frequency_penalty) == (0.0, 0.0)
    assert params.logit_bias == ()
    assert not params.logprobs
