"""Attention over the paged KV cache: one interface, one file per kind of kernel."""
