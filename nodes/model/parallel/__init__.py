"""One slice computed by several devices of a node at once: each holds some of every layer's heads.

Rank 0 is the node itself; the others are processes that it starts and that end with it. Split as in
Megatron-LM (Shoeybi et al., arXiv:1909.08053): two sums over the ranks per layer.
"""
