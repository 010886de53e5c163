"""Whether a model, whoever made it, is the merge that a recipe says; and what it is instead."""
