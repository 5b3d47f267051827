"""simple_spread_v3 stepped with random actions and nothing else, in `processes` processes at once."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import serving
from mpe2 import simple_spread_v3


def step_for(seed: int, asked, done) -> None:
    """One process: for every number of seconds that comes, the env steps it took in them (resets included)."""
    env = simple_spread_v3.parallel_env(N=3, max_cycles=25)
    actions = np.random.default_rng(seed).integers(0, 5, size=(1000, 3)).tolist()
    env.reset(seed=seed)
    done.put(0)
    while (seconds := asked.get()) is not None:
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            env.step(dict(zip(env.possible_agents, actions[steps % 1000], strict=True)))
            steps += 1
            if not env.agents:
                env.reset()
        done.put(steps)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    count = serving.setting()["processes"]
    done = context.Queue()
    asked = [context.Queue() for _ in range(count)]
    processes = [context.Process(target=step_for, args=(i, asked[i], done), daemon=True) for i in range(count)]
    for process in processes:
        process.start()
    for _ in processes:
        done.get()
    serving.say(serving.versions("mpe2", "pettingzoo", "numpy"))
    for request in serving.requests():
        began = time.perf_counter()
        for queue in asked:
            queue.put(request["seconds"])
        steps = sum(done.get() for _ in processes)
        serving.say({"env_steps": steps, "seconds": time.perf_counter() - began})
    for queue in asked:
        queue.put(None)


if __name__ == "__main__":
    main()
