"""Network parts that every algorithm shares: torsos, recurrence, action heads and input encodings (flax.linen)."""
