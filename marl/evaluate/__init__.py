"""Evaluation: the record of evaluated episodes and the statistics that say how far to trust them."""
