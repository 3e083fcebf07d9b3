"""A CUDA device that is none: tensors of this process that torch's functions take for a device's.

What a program says to a GPU is tested with it on machines without one: that no operation mixes host
and device, that nothing waits or copies while a graph is captured, that pinned memory is left alone
until the device has read it and not read before the device has written it. What the kernels of CUDA
do, and how fast, it does not know. Use the fixture `counterfeit_gpu`.
"""
