"""Weights found, not guessed: what a recipe varies is tried in memory, and what was found is told with its intervals.

`taskmerge.searching.api.search` is the way in; `taskmerge search` its command.
"""
