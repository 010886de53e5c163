"""The kernels compiled by numba: one compilation serves every mix of dtypes and any number of specialists."""
