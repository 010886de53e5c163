"""The reference: Programs interpreted in float64 by torch operations, on any device, plainly.

`survivors` and `consensus` say what each piece of a Program does to whole tensors; `whole` runs a Program on tensors in
memory; `formats` and `backend` run it over raw entries, piece by piece, where the compiled kernels do not: on other
devices, and where numba is absent.
"""
