"""Merge methods: pure functions of tensors, one short file per family, found by name."""

from taskmerge.methods import (
    agreement,
    averages,
    breadcrumbs,
    covariance,
    dare,
    della,
    geometry,
    selective,
    spectral,
    ties,
)
from taskmerge.methods.discovery import all_methods, find_method, known_names
from taskmerge.methods.registry import INPUTS, MergeMethod, merge_method

__all__ = [
    "INPUTS",
    "MergeMethod",
    "agreement",
    "all_methods",
    "averages",
    "breadcrumbs",
    "covariance",
    "dare",
    "della",
    "find_method",
    "geometry",
    "known_names",
    "merge_method",
    "selective",
    "spectral",
    "ties",
]
