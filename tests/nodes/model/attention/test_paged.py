"""What we hand to the CUDA kernels makes them compute the model; a wrong kernel is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from helix_mq.errors import ConfigError
from helix_mq.layers import LayerRange
from nodes.kv_cache import KvCache, KvLayout
from nodes.model.attention.base import AttentionBackend, BackendUnavailable
from nodes.model.attention.choose import (
    Candidate,
    choose_attention,
    cuda_candidates,
    first_working,
)
from nodes.model.attention.gather import GatherAttention
from nodes.model.attention.kernels import FlashAttention2, FlashAttention3
from nodes.model.attention.paged import PagedAttention, PagedKernel, PagedRows
from nodes.model.attention.trial import find_fault
from nodes.model.batch import RowSpec
from tests.nodes.model.attention.one_layer import CONFIG, CPU

KERNELS = ["flash_attn_2", "flash_attn_3", "torch_varlen"]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2_sliding"])
def test_slices_through_paged_kernels_equal_transformers(
    checkpoint: Callable[[str], Any],
    chain: Callable[..., Any],
    kernels: dict[str, PagedKernel],
    name: str,
    family: str,
) -> None:
    model = checkpoint(family)
    backend = PagedAttention(name, kernels[name], CPU)
    nodes = chain(model, page_tokens=256, layout=KvLayout.TOKEN_MAJOR, backend=backend)
    ids = {"a": list(range(30, 64)), "b": list(range(5, 29))}
    full = {s: model.reference_logits(i) for s, i in ids.items()}
    layers = LayerRange(0, 4)
    steps = [
        [("a", 0, 20)],
        [("b", 0, 9), ("a", 20, 21)],
        [("a", 21, 30), ("b", 9, 12)],
        [("b", 12, 13), ("a", 30, 31)],
    ]
    for step in steps:
        rows = [RowSpec(s, at, end - at, layers, True) for s, at, end in step]
        tokens = torch.tensor([t for s, at, end in step for t in ids[s][at:end]])
        got = nodes.run(0, rows, tokens).logits
        wanted = torch.stack([full[s][end - 1] for s, _, end in step])
        assert (got - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_passes_the_trial(
    kernels: dict[str, PagedKernel], name: str, dtype: torch.dtype
) -> None:
    assert find_fault(PagedAttention(name, kernels[name], CPU), CONFIG, CPU, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gathering_passes_the_trial(dtype: torch.dtype) -> None:
    assert find_fault(GatherAttention(device=CPU, dtype=dtype), CONFIG, CPU, dtype) is None


@dataclass(frozen=True)
class Broken:
    """A kernel that is right except for what `change` does to its input or output."""

    inner: PagedKernel
    change: str
    page_multiple: int = 256
    decodes_apart: bool = False

    def __call__(
        self,
        query: torch.Tensor,
        cache: KvCache,
        rows: PagedRows,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        if self.change == "raises":
            raise RuntimeError("CUDA error: no kernel image\nis available")
        if self.change == "nan":
            return torch.full_like(query, float("nan"))
        if self.change == "ignores the window":
            window = None
        if self.change == "window off by one" and window is not None:
            window += 1
        if self.change == "one key short":
            fewer = (rows.kv_lens - 1).clamp(min=1)
            rows = PagedRows(
                rows.starts, rows.kv_starts, fewer, rows.tables, rows.max_count, rows.max_kv_len
            )
        return self.inner(query, cache, rows, layer, window)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("raises", "it fails here: CUDA error: no kernel image"),
        ("nan", "its attention is off by nan"),
        ("ignores the window", "its sliding-window attention is off by"),
        ("window off by one", "its sliding-window attention is off by"),
        ("one key short", "its attention is off by"),
    ],
)
def test_a_wrong_kernel_is_found_out(
    kernels: dict[str, PagedKernel], change: str, fault: str
) -> None:
    broken = Broken(kernels["flash_attn_3"], change)
    found = find_fault(PagedAttention("broken", broken, CPU), CONFIG, CPU, torch.bfloat16)
    assert found is not None
    assert found.startswith(fault)


def test_the_first_that_works_is_chosen_and_the_others_are_named(
    kernels: dict[str, PagedKernel],
) -> None:
    def absent() -> AttentionBackend:
        raise BackendUnavailable("the package cannot be imported")

    broken = PagedAttention("broken", Broken(kernels["flash_attn_3"], "nan"), CPU)
    right = PagedAttention("right", kernels["flash_attn_2"], CPU)
    candidates = [
        Candidate("flash_attn", "One", absent),
        Candidate("flash_attn", "Two", lambda: broken),
        Candidate("flash_attn", "Three", lambda: right),
    ]

    def fault_of(backend: AttentionBackend) -> str | None:
        return find_fault(backend, CONFIG, CPU, torch.bfloat16)

    choice = first_working(candidates, fault_of)
    assert choice.backend is right
    assert choice.reason == (
        "Three (passed over One: the package cannot be imported; Two: its attention is off by nan)"
    )
    with pytest.raises(ConfigError, match=r"no attention works here: One: .*; Two: its attention"):
        first_working(candidates[:2], fault_of)


def test_candidates_of_cuda_here_explain_themselves() -> None:
    """Without a GPU the packages are absent or raise; what remains is the gathered one."""
    reasons = []
    for candidate in cuda_candidates(CPU, torch.float32):
        try:
            candidate.build()
        except BackendUnavailable as error:
            reasons.append(str(error))
    assert reasons == ["it computes in 16 bits, not in torch.float32"] * 3
    choice = first_working(
        cuda_candidates(CPU, torch.bfloat16),
        lambda b: find_fault(b, CONFIG, CPU, torch.bfloat16),
    )
    assert choice.backend.name == "gather"


@pytest.mark.parametrize(("capability", "taken"), [((9, 0), True), ((8, 9), False)])
def test_flash_attention_3_is_for_hopper(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], taken: bool
) -> None:
    """On other devices its kernels may be missing, and then it ends the process."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(FlashAttention3, "load", lambda: FlashAttention3(lambda: None))
    first = cuda_candidates(torch.device("cuda:0"), torch.bfloat16)[0]
    assert first.title == "FlashAttention 3"
    if taken:
        assert first.build().name == "flash_attn_3"
    else:
        with pytest.raises(BackendUnavailable, match=r"compute capability 9, not 8\.9"):
            first.build()


@pytest.mark.parametrize("override", ["flash_attn", "torch_flash"])
def test_cuda_kernels_do_not_run_on_a_cpu(override: str) -> None:
    with pytest.raises(ConfigError, match=f"attention='{override}' does not run on cpu; use auto"):
        choose_attention(CONFIG, CPU, torch.float32, override)


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="attention='xformers' is unknown; use auto, flash_attn"):
        choose_attention(CONFIG, CPU, torch.float32, "xformers")
    assert choose_attention(CONFIG, CPU, torch.float32, "cpu").backend.name == "gather"
    with pytest.raises(ConfigError, match="does not run on cuda"):
        choose_attention(CONFIG, torch.device("cuda:0"), torch.float32, "cpu")


def test_flash_attn_2_sends_decodes_to_the_kernel_that_splits(
    kernels: dict[str, PagedKernel],
    checkpoint: Callable[[str], Any],
    chain: Callable[..., Any],
) -> None:
    real = kernels["flash_attn_2"]
    assert isinstance(real, FlashAttention2)
    calls: list[tuple[str, int]] = []

    def varlen(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(("varlen", len(q)))
        return real.varlen(q, *args, **kwargs)

    def with_kvcache(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(("with_kvcache", len(q)))
        return real.with_kvcache(q, *args, **kwargs)

    backend = PagedAttention("fa2", FlashAttention2(varlen, with_kvcache), CPU)
    nodes = chain(
        checkpoint("llama2"), page_tokens=256, layout=KvLayout.TOKEN_MAJOR, backend=backend
    )
    one = LayerRange(0, 1)
    rows = [RowSpec("a", 0, 1, one), RowSpec("b", 0, 7, one), RowSpec("c", 0, 1, one)]
    nodes.run(0, rows, torch.arange(9))
    assert sorted(calls) == [("varlen", 7), ("with_kvcache", 2)]
