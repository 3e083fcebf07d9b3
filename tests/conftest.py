"""Fixtures that many tests share: a tiny model folder with a real tokenizer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# One thread for each of several workers, read by the mathematics libraries as they are loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch
import transformers

from bench.byte_tokenizer import byte_tokenizer
from tests.counterfeit_gpu.device import Gpu
from tests.counterfeit_gpu.kernels import install
from tests.counterfeit_gpu.runtime import counterfeit

# No test is to fail for the time that a busy machine takes; in CI hypothesis sets none by itself.
if "CI" not in os.environ:
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")

# Tiny matrices: two threads only wait for each other, ten times slower on a busy machine.
torch.set_num_threads(1)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_byte_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: 256 bytes, then the special tokens of the chat template."""
    tokenizer = byte_tokenizer(("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 6 layers with a byte tokenizer and a chat template, vocabulary 260."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        initializer_range=0.2,
        eos_token_id=256,
        bos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = 256
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture
def counterfeit_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A device `cuda:0` that is none, and the attention packages for it: tests.counterfeit_gpu."""
    with counterfeit(monkeypatch) as gpu:
        install(monkeypatch)
        yield gpu


def pytest_configure() -> None:
    """Started in the background by a shell, a process ignores Ctrl-C, and so would its children:
    tests that interrupt them would wait for ever."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
