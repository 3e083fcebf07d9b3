"""`helix-mq doctor`: what is wrong with this machine and these settings, and what to do about it.

Each module looks at one thing: a frozen record of facts, a pure `check_...` that judges them, and a
thin collector. What needs torch or a process's own settings is announced by `nodes` and `router`
as entry points (`helix_mq.doctor`, see parts.py). Nothing is changed anywhere.
"""

from helix_mq.doctor.findings import Finding, Level, ok, problem, warning

__all__ = ["Finding", "Level", "ok", "problem", "warning"]
