"""The kernels compiled by numba: one compilation serves every mix of dtypes and any number of specialists.

`formats`, `blocks`, `combining`, `scanning`, `ranking` are numba's source; `native` turns it into machine code once and
loads it from then on without numba; `backend` is what the rest of the package calls.
"""
