"""The kernels as torch operations: for devices other than the CPU, and where numba is absent."""
