"""The kernels' packages: what is known of their calls is so where they are installed, and one that
cannot be used is passed over in words."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nodes.model.attention.base import BackendUnavailable
from nodes.model.attention.kernels import FlashAttention2, FlashAttention3, TorchVarlen
from nodes.model.attention.paged import PagedAttention, PagedKernel
from nodes.model.attention.trial import find_fault
from tests.nodes.model.attention import packages as facts
from tests.nodes.model.attention.one_layer import CONFIG, CPU


@pytest.mark.parametrize(
    ("module", "function", "known"),
    [
        ("flash_attn", "flash_attn_varlen_func", facts.FA2_VARLEN),
        ("flash_attn", "flash_attn_with_kvcache", facts.FA2_KVCACHE),
        ("flash_attn_interface", "flash_attn_with_kvcache", facts.FA3_KVCACHE),
        ("torch.nn.attention.varlen", "varlen_attn", facts.TORCH_VARLEN),
    ],
)
def test_what_is_known_of_a_package_is_so(module: str, function: str, known: str) -> None:
    try:
        found = getattr(import_module(module), function)
    except ImportError:
        pytest.skip(f"{module} is not installed")
    has = list(inspect.signature(found).parameters)
    if module.startswith("torch") and "block_table" not in has:
        pytest.skip(f"torch {torch.__version__} reads no block tables")
    # Later releases may know more; what we pass by position must stay where it is.
    positional = [name for name in known.split() if name in ("q", "k", "v", "query", "key")]
    assert has[: len(positional)] == known.split()[: len(positional)]
    assert set(known.split()) - {"sinks"} <= set(has)


def test_a_torch_whose_attention_reads_no_block_tables_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def old(query: object, *rest: object, **more: object) -> None:
        raise AssertionError("it was called")

    keywords = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in facts.TORCH_VARLEN_OLD.split()
    ]
    old.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", old)
    with pytest.raises(BackendUnavailable, match=r"varlen_attn of torch .* reads no block tables"):
        TorchVarlen.load()


@pytest.mark.parametrize(
    ("load", "module"),
    [(FlashAttention2.load, "flash_attn"), (FlashAttention3.load, "flash_attn_interface")],
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise OSError('undefined symbol: _ZN3c10\\nmore')", "undefined symbol: _ZN3c10"),
        ("raise RuntimeError()", "RuntimeError"),
        ("", "cannot import name"),
    ],
)
def test_a_package_that_cannot_be_imported_is_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[[], object],
    module: str,
    text: str,
    said: str,
) -> None:
    """One that was built for another torch raises whatever it likes."""
    (tmp_path / f"{module}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    # Set before it is taken out: what is imported then goes with the test.
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BackendUnavailable, match=f"cannot be imported .*{said}"):
        load()


def test_releases_that_return_the_logarithms_too_are_understood(
    kernels: dict[str, PagedKernel],
) -> None:
    def with_both(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return facts.flash_attn_with_kvcache_3(*args, **kwargs), torch.zeros(1)

    backend = PagedAttention("fa3", FlashAttention3(with_both), CPU)
    assert find_fault(backend, CONFIG, CPU, torch.bfloat16) is None


def test_a_kernel_that_is_wrong_for_decodes_alone_is_found_out() -> None:
    """The kernels that divide a row's keys are other ones than those for prompts."""

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = facts.flash_attn_with_kvcache_3(*args, **kwargs)
        return out * 1.5 if kwargs["max_seqlen_q"] == 1 else out

    backend = PagedAttention("fa3", FlashAttention3(wrong), CPU)
    fault = find_fault(backend, CONFIG, CPU, torch.bfloat16)
    assert fault is not None
    assert fault.startswith("its attention is off by")
