"""mergekit's configuration files, read as recipes: its semantics, spelled out as our options.

Written from its documentation and from what version 0.1.5 does. What cannot be done is refused by name.
"""

from taskmerge.recipes.mergekit.translation import translate

__all__ = ["translate"]
