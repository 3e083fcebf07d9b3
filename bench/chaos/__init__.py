"""Faults under load against real processes: `helix-mq bench chaos`. See docs/chaos.md."""
