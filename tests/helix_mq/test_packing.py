"""What a header announces is bounded before there is room made for it."""

from __future__ import annotations

import time
import tracemalloc

import msgspec
import pytest
from msgspec import inspect as types

from helix_mq.errors import FrameError
from helix_mq.messages import KINDS
from helix_mq.packing import unpack

MOST_ITEMS = 1 << 20
"""Of any array of any message: 8 MiB of references."""


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_array_of_a_message_has_a_bound_and_nothing_is_of_any_type(
    kind: type[msgspec.Struct],
) -> None:
    _check(types.type_info(kind), kind.__name__)


def _check(found: types.Type, path: str) -> None:
    match found:
        case types.StructType():
            for field in found.fields:
                _check(field.type, f"{path}.{field.name}")
        case types.VarTupleType():
            assert found.max_length is not None, path
            assert found.max_length <= MOST_ITEMS, path
            _check(found.item_type, path)
        case types.TupleType():
            for item in found.item_types:
                _check(item, path)
        case types.UnionType():
            for choice in found.types:
                _check(choice, path)
        case _:
            plain = types.IntType | types.FloatType | types.BoolType | types.NoneType
            assert isinstance(found, plain | types.StrType | types.BytesType), f"{path}: {found}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\x00\x02\x00\x00" * 1000,
        b"\xdd\x7f\xff\xff\xff" * 1000,
        b"\xdf\x7f\xff\xff\xff" * 1000,
        b"\xdb\x7f\xff\xff\xff" * 1000,
        b"\xc6\x7f\xff\xff\xff" * 1000,
    ],
    ids=["arrays", "long arrays", "maps", "texts", "bytes"],
)
def test_a_few_bytes_that_announce_much_cost_little(
    kind: type[msgspec.Struct], bomb: bytes
) -> None:
    # As the whole header, as each of its fields, and behind all of them.
    fields = len(kind.__struct_fields__)
    heads = [b"", *(bytes((0x90 + min(15, fields + 1),)) + b"\x01" * i for i in range(fields + 1))]
    tracemalloc.start()
    began_s = time.thread_time()
    try:
        for head in heads:
            with pytest.raises(FrameError):
                unpack(head + bomb, kind)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began_s < 0.5
