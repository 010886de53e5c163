"""Methods that work on complete matrices through their singular values; other tensors get the mean."""

from taskmerge.methods.spectral import closed_form, isotropic, spaces, trimmed, tsv

__all__ = ["closed_form", "isotropic", "spaces", "trimmed", "tsv"]
