"""Kernels in C++ for a pass on a CPU, where a compiler is there: matrix products and the rest.

kernels.cpp and its headers hold them, build.py compiles them once per machine; kernels.py,
products.py and layers.py make them functions of tensors, the first two try them against PyTorch;
block.py, the attention backend and ModelSlice use them. Nothing needs them: without a compiler, or
where a trial fails, PyTorch's own operators do the same, slower.
"""
