"""Workloads: how long requests are and when they come, read from traces or drawn from a seed."""
