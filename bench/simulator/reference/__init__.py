"""Compatibility mode: the published simulator's semantics, rebuilt from their description.

For comparison only: it has its own layer-marching nodes, schedulers and feeders, shares nothing
with what serves requests, and is not what we believe (that is the native mode). Same input, same
event log hash, on any machine.
"""

from bench.simulator.reference.run import CaseResult, ReferenceResult, RunOptions, run, run_case

__all__ = ["CaseResult", "ReferenceResult", "RunOptions", "run", "run_case"]
