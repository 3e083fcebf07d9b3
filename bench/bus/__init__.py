"""What a hop costs: our bus beside plain pyzmq, in processes of their own, in turns.

`blocking`, `drained`, `connection`, `plane`: who carries the bytes, from plain pyzmq to all of ours
`worker`    one process of a ring, told what to do over its stdin
`run`       the rings of one link, measured in short rounds that take turns
`report`    medians, and ratios between systems of the same round
"""
