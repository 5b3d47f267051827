"""marl: multi-agent reinforcement learning on JAX. Heavy imports happen inside the functions that need them."""

__version__ = "0.1.0"
