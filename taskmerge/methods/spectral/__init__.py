"""Methods that work on whole matrices through their singular values; tensors that are no matrices take the mean."""

from taskmerge.methods.spectral import closed_form, isotropic, spaces, trimmed, tsv

__all__ = ["closed_form", "isotropic", "spaces", "trimmed", "tsv"]
