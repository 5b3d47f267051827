"""marl: multi-agent reinforcement learning on JAX. Heavy imports happen inside the functions that need them."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`marl.load_policy` and `marl.train` import JAX only when they are asked for."""
    if name == "load_policy":
        from marl.runner.policies import load_policy

        return load_policy
    raise AttributeError(f"module 'marl' has no attribute '{name}'")
