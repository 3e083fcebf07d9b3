"""What a worker's steps came to so far, and how long they should have taken. Pure."""

from __future__ import annotations

from nodes.step_expectation import StepExpectation
from nodes.steps import Batch, StepResult

_KNOWN_STEPS = 1024


class StepCounts:
    def __init__(self, expectation: StepExpectation | None) -> None:
        self.steps = 0
        self.step_s = 0.0
        self.tokens = 0
        self.layer_tokens = 0
        self.expected_s = 0.0
        self._expectation = expectation
        self._decodes_s: dict[int, float] = {}
        """Steps of decodes only: seconds they should take, by their tokens times layers."""

    def count(self, batch: Batch, result: StepResult, *, only_decodes: bool) -> None:
        """A step that ended well."""
        self.steps += 1
        self.step_s += result.seconds
        self.tokens += result.num_tokens
        self.layer_tokens += result.layer_tokens
        expectation = self._expectation
        if expectation is None:
            return
        if not only_decodes:
            self.expected_s += expectation.seconds(batch)
            return
        expected_s = self._decodes_s.get(result.layer_tokens)
        if expected_s is None:
            expected_s = expectation.of_decodes(result.layer_tokens)
            if len(self._decodes_s) < _KNOWN_STEPS:
                self._decodes_s[result.layer_tokens] = expected_s
        self.expected_s += expected_s
