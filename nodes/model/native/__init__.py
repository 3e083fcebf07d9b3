"""Small kernels in C++ for what surrounds the matrix products on a CPU, where a compiler is there.

kernels.cpp holds them, build.py compiles them once per machine, kernels.py makes them functions of
tensors and tries them against PyTorch, block.py and attention.py use them. Nothing needs them:
without a compiler, or where a trial fails, PyTorch's own operators do the same, slower.
"""
