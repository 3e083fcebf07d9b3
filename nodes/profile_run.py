"""One run of `helix-mq profile`: which slice, from the cache or measured, shown and written."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import torch

from helix_mq.errors import ConfigError
from helix_mq.layers import MAX_LAYERS, LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation, WeightForm
from helix_mq.models.resolve import default_cache, resolve_model
from helix_mq.step_tables import write_tables
from nodes import profile_cache
from nodes.identity import NodeIdentity, identify
from nodes.loading import LoadRequest, load_model
from nodes.model.attention.choose import choose_attention
from nodes.profile import CONTEXT_TOKENS, Point, Profile, measure, most_pages
from nodes.profile_cache import ProfileKey
from nodes.settings import NodeSettings

Say = Callable[[str], None]

LEAST_LAYERS: Final = 4
LEAST_BYTES: Final = 256 << 20
"""Of weights in the default slice, so that a processor's caches do not hold them between steps."""

BUSY: Final = 0.2
"""Share of the processors that others may use before times are called too long: threads of a step
wait for each other, so that one that has to share its core holds up all."""
_LOOK_S: Final = 0.3


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What the command line says beside a node's settings."""

    layers: str | None
    context_tokens: int | None
    max_seconds: float
    out: Path | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, in the words and figures that go beside the times."""

    request: LoadRequest
    config: ModelConfig
    key: ProfileKey


def run(settings: NodeSettings, options: ProfileOptions, *, as_json: bool) -> str:
    """The profile as text for people, or JSON; writes `options.out` where it is given.

    ConfigError, ModelFormatError or CapacityError in words; nothing is measured whose result could
    not be written.
    """
    if not 0 < options.max_seconds < math.inf:
        raise ConfigError(
            f"--max-seconds {options.max_seconds} must be positive", param="max_seconds"
        )
    if options.out is not None:
        _check_writable(options.out)
    with _progress() as say:
        say("reading the model")
        folder = resolve_model(settings.model)
        config = ModelConfig.from_folder(folder)
        chosen = None if options.layers is None else parse_layers(options.layers, config.num_layers)
        identity = identify(settings, folder)
        subject = subject_of(settings, identity, chosen, options.context_tokens)
        cache = default_cache()
        kept = None
        if not options.fresh:
            kept = profile_cache.find(cache, subject.key, options.max_seconds)
        profile = kept
        if profile is None:
            profile = measured(subject, options.max_seconds, say)
            profile_cache.keep(cache, subject.key, profile, options.max_seconds)
    if options.out is not None:
        write_tables(options.out, profile.tables())
    if as_json:
        return json.dumps(_plain(subject, profile, kept is not None), indent=2)
    return "\n".join(_lines(subject, profile, options.out, kept is not None))


def parse_layers(text: str, num_layers: int) -> LayerRange:
    """`A:B` as layers of the model; ConfigError in words."""
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]) <= min(num_layers, MAX_LAYERS):
        raise ConfigError(
            f"--layers {text!r:.40} is no range of this model's {num_layers} layers; use A:B for "
            "layers A up to, not including, B, for example 0:1",
            param="layers",
        )
    return LayerRange(int(match[1]), int(match[2]))


def default_layers(
    config: ModelConfig,
    itemsize: int,
    least_layers: int = LEAST_LAYERS,
    quantise: Quantisation = Quantisation.NONE,
) -> LayerRange:
    """From the middle, without embedding and head where the model has three layers or more."""
    inner = config.num_layers - 2
    if inner < 1:
        return LayerRange(0, config.num_layers)
    one = WeightForm(itemsize, quantise).layer_bytes(config)
    count = min(inner, max(least_layers, -(-LEAST_BYTES // one)))
    first = 1 + (inner - count) // 2
    return LayerRange(first, first + count)


def subject_of(
    settings: NodeSettings,
    identity: NodeIdentity,
    chosen: LayerRange | None = None,
    context_tokens: int | None = None,
    least_layers: int = LEAST_LAYERS,
) -> Subject:
    """What is to be measured on this machine, and the key it is kept under."""
    folder = identity.folder
    config = ModelConfig.from_folder(folder)
    device, dtype = identity.device, identity.dtype
    quantise = Quantisation(settings.quantise)
    layers = chosen or default_layers(config, dtype.itemsize, least_layers, quantise)
    attention = choose_attention(config, device, dtype, settings.attention)
    key = ProfileKey(
        model_digest=identity.model_digest,
        dtype=_dtype_name(dtype, quantise),
        device=_device_name(identity) + _times(settings.tensor_parallel),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        attention=attention.backend.name,
        torch_version=str(torch.__version__),
        first_layer=layers.first,
        num_layers=len(layers),
        context_tokens=context_tokens or CONTEXT_TOKENS,
        memory_bytes=int(settings.memory or 0),
    )
    request = LoadRequest(
        node=settings.name,
        folder=folder,
        layers=layers,
        device=device,
        dtype=dtype,
        attention=settings.attention,
        memory_bytes=identity.memory_bytes,
        quantise=quantise,
        tensor_parallel=settings.tensor_parallel,
        cuda_graphs=settings.cuda_graphs,
    )
    return Subject(request, config, key)


def _times(ranks: int) -> str:
    return f" x {ranks}" if ranks > 1 else ""


def _dtype_name(dtype: torch.dtype, quantise: Quantisation) -> str:
    """`bfloat16`, or `bfloat16 with int8 weights`."""
    name = str(dtype).removeprefix("torch.")
    return name if quantise is Quantisation.NONE else f"{name} with {quantise} weights"


def _device_name(identity: NodeIdentity) -> str:
    """The hardware's name, without the place it is plugged into."""
    if identity.device.type == "cuda":
        return torch.cuda.get_device_name(identity.device)
    try:
        # What platform.processor() returns on Linux is "x86_64", or nothing.
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*: (.{1,100})$", text, re.MULTILINE)
    return match[1].strip() if match else identity.device_text


def measured(subject: Subject, max_seconds: float, say: Say) -> Profile:
    """Loads the slice and measures it. Raises as nodes.loading.load_model and nodes.profile.measure
    do."""
    request, context = subject.request, subject.key.context_tokens
    layers, longest = len(request.layers), subject.config.max_context
    busy_share = 0.0
    if request.device.type == "cpu":
        say("looking for other load")
        busy_share = min(1.0, psutil.cpu_percent(_LOOK_S) / 100)
    model, cache = load_model(request, say, lambda page: most_pages(layers, longest, context, page))
    try:
        profile = measure(
            model,
            cache,
            context,
            max_seconds,
            lambda phase, batch: say(f"{phase}, batch {batch:,}"),
        )
    finally:
        model.close()
    return replace(profile, busy_share=busy_share)


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after."""
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {folder}", param="out")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"--out {path}: cannot be written", param="out")


@contextmanager
def _progress() -> Iterator[Say]:
    """One line on a terminal, overwritten and cleared at the end; nothing in files and pipes."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return

    def say(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    try:
        yield say
    finally:
        say("")


def _plain(subject: Subject, profile: Profile, kept: bool) -> dict[str, object]:
    key = asdict(subject.key)
    for name in ("context_tokens", "memory_bytes", "first_layer", "num_layers"):
        del key[name]
    layers = subject.request.layers
    return {
        "model": str(subject.request.folder),
        "layers": [layers.first, layers.end],
        "has_embedding": layers.first == 0,
        "has_head": layers.end == subject.config.num_layers,
        **key,
        "from_cache": kept,
        **asdict(profile),
    }


def _lines(subject: Subject, profile: Profile, out: Path | None, kept: bool) -> list[str]:
    key, layers = subject.key, subject.request.layers
    threads = f", {key.threads} threads" if key.threads else ""
    ends = [
        what
        for what, there in (
            ("embedding", layers.first == 0),
            ("head", layers.end == subject.config.num_layers),
        )
        if there
    ]
    lines = [
        f"model      {subject.request.folder}",
        f"device     {key.device}{threads}, {key.dtype}, attention {key.attention}, "
        f"torch {key.torch_version}",
        f"measured   {layers}{' with ' + ' and '.join(ends) if ends else ''}"
        + (", kept from an earlier run (--fresh measures anew)" if kept else ""),
        "",
        *_table("prefill", "tokens", profile.prefill, profile.prefill_end),
        "",
        *_table(
            f"decode, {profile.context_tokens:,} tokens of context each",
            "requests",
            profile.decode,
            profile.decode_end,
        ),
    ]
    if profile.busy_share > BUSY:
        lines += [
            "",
            f"WARNING: other programs used {profile.busy_share:.0%} of the processors just before, "
            "so times are too long; repeat with --fresh when the machine is quiet",
        ]
    if out is not None:
        lines += ["", f'wrote {out}: name it in a cluster file, tables = "{out.name}"']
    return lines


def _table(title: str, unit: str, points: tuple[Point, ...], end: str) -> list[str]:
    head = f"{unit:>9}  {'ms/layer':>10}  {'best':>10}  {'layer-tokens/s':>15}"
    rows = [
        f"{p.batch:>9,}  {p.median_s * 1e3:>10.4f}  {p.best_s * 1e3:>10.4f}  "
        f"{p.batch / p.median_s:>15,.0f}"
        for p in points
    ]
    return [f"{title} (ended by {end})", head, *rows]
