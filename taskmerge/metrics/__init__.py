"""Plain measurements on arrays of embeddings: no model, no file, NumPy alone."""
