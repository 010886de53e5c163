"""Check of a model against the merge that a recipe describes, with the closest description of a model that differs."""
