"""Merge methods: pure functions of tensors, one short file per family, found by name."""

from taskmerge.methods import averages, dare, ties
from taskmerge.methods.discovery import find_method, is_file_method
from taskmerge.methods.registry import INPUTS, MergeMethod, all_methods, known_names, merge_method

__all__ = [
    "INPUTS",
    "MergeMethod",
    "all_methods",
    "averages",
    "dare",
    "find_method",
    "is_file_method",
    "known_names",
    "merge_method",
    "ties",
]
