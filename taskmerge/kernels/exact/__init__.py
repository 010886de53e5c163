"""Float64 outputs, each the correctly rounded value of its formula: arithmetic wider than float64, in NumPy.

`expansions` holds every intermediate as a sum of float64 parts and knows how much that leaves out; `terms` are the
program's numbers as fractions; `combining` evaluates block by block and says which entries are certain; the few others
are computed once more by `rational`, in fractions. The correctly rounded value is one value, so the bits are the same
for every cut, thread and device.
"""

from taskmerge.kernels.exact.combining import combine, rescale_factors

__all__ = ["combine", "rescale_factors"]
