"""Floor 0: the vocabulary every other part speaks. Importing this package alone imports neither JAX nor Ray."""
