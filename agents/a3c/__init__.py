"""Asynchronous advantage actor-critic: gradients from many workers, applied as they arrive."""
