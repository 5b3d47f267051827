"""Adapters at the edge: our worlds as PettingZoo sees them. Gymnasium's spaces go no further in."""
