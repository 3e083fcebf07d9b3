"""The processes as systemd services: the text of their units, and what installing them takes.

`units` and `plan` are pure; `host` looks at the machine and carries a plan out.
"""
