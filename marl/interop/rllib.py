"""Our worlds for RLlib, and RLlib's learners for our runs (new API stack, Ray 2.60; the learners need torch).

`RllibEnv` is any of our worlds as a `MultiAgentEnv`. `RllibTrainer` trains with RLlib's own PPO or IMPALA; what it
keeps goes in and out as plain arrays, as nothing that was read from disk is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import ray
from numpy.typing import NDArray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from marl.core.errors import RunError, UserError, WorldError
from marl.core.registry import find_in_current_folder
from marl.core.roles import RoleSpec
from marl.core.spaces import Box, Space
from marl.interop.rllib_learner import (
    Iteration,
    Training,
    learner_metrics,
    learner_state,
    part,
    policy_layers,
    restore_learner,
    updates,
)
from marl.interop.rllib_world import (
    Counter,
    Faults,
    GuardedWorld,
    Moved,
    Named,
    NamedWorld,
    agent_name,
    flat,
    flat_size,
    open_world,
)
from marl.interop.spaces import to_gymnasium

COUNTS = "marl"  # where a runner's counts lie among RLlib's metrics
PATIENCE_S = 600.0  # how long RLlib may deliver no env step before the run has failed
MAX_SEED = 2**31 - 1
Tree = Any


class RllibEnv(MultiAgentEnv):  # type: ignore[misc] # untyped base
    """One copy of a world. In `env_config`:

    world: `pettingzoo:...`, `gymnasium:...`, or `package.module:Class` of a world in JAX.  options: its options.
    flat: show observations as one vector of floats and take Box actions as one, as the learners here do.  render: it
    can be drawn.  faults: the fields of `rllib_world.Faults`, None: errors of the world are RLlib's to handle.

    Agents are named `<role>_<index>`; those that act next are in the observations, with those that have just ended; in
    worlds of turns that is one agent. `agents` are those that a step is about. `infos[agent]` has the world's numbers
    and `action_mask`, if there is one. An episode that nothing but time ended is truncated. An agent that ended must
    not come back in the same episode.

    Raises: UserError if there is no such world or an option is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 # as Gymnasium declares it

    def __init__(self, config: Mapping[str, Any]) -> None:
        if getattr(config, "worker_index", 0):
            _compute_on_the_cpu()
        known = {"world", "options", "flat", "render", "faults"}
        for key in config:
            if key not in known:
                raise UserError(f"unknown key '{key}' in env_config; expected {', '.join(sorted(known))}")
        find_in_current_folder()
        name, options, faults = config["world"], config.get("options", {}), config.get("faults")
        self.world: NamedWorld = (
            GuardedWorld(name, options, Faults(**faults))
            if faults
            else open_world(name, options, render=bool(config.get("render")))
        )
        self.render_mode = "rgb_array" if config.get("render") else None
        self.counter = Counter(self.world.roles)
        self._flat = bool(config.get("flat"))
        self._role_of: dict[str, RoleSpec] = {
            agent_name(role.name, i): role for role in self.world.roles for i in range(role.size)
        }
        self.possible_agents = list(self._role_of)
        self.agents = list(self._role_of)
        self.observation_spaces = {agent: self._observation_space(role) for agent, role in self._role_of.items()}
        self.action_spaces = {agent: self._action_space(role.action_space) for agent, role in self._role_of.items()}
        self._stream = int(getattr(config, "worker_index", 0))
        self._seeds = np.random.default_rng()
        super().__init__()

    def _observation_space(self, role: RoleSpec) -> gymnasium.Space[Any]:
        space = role.observation_space
        return to_gymnasium(Box((flat_size(space),)) if self._flat else space)

    def _action_space(self, space: Space) -> gymnasium.Space[Any]:
        if self._flat and isinstance(space, Box):
            space = Box((flat_size(space),), space.low, space.high)
        return to_gymnasium(space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Named, Named]:
        """Begin an episode. A seed begins a reproducible sequence of episodes, another one in each env runner."""
        del options
        if seed is not None:
            self._seeds = np.random.default_rng([self._stream, seed])
        obs, masks = self.world.reset(int(self._seeds.integers(MAX_SEED)))
        self.agents = list(self.world.living)
        self.counter.begin()
        return self._shown(obs), {agent: _info(agent, masks, {}) for agent in obs}

    def step(self, action_dict: Mapping[str, Any]) -> tuple[Named, Named, Named, Named, Named]:
        """The actions of the agents that were in the last observations and had not ended.

        Raises: WorldError or UserError as the world does.
        """
        living = len(self.world.living)
        actions = {agent: self._action(agent, action) for agent, action in action_dict.items()}
        moved: Moved = self.world.step(actions)
        self.agents = [a for a in self.possible_agents if a in moved.reward or a in self.world.living]
        self.counter.add(moved, living)
        terminated, truncated = dict(moved.terminated), dict(moved.truncated)
        terminated["__all__"] = moved.last and all(moved.terminated.values())
        truncated["__all__"] = moved.last and not terminated["__all__"]
        infos = {agent: _info(agent, moved.masks, {} if self._flat else moved.info) for agent in moved.obs}
        return self._shown(moved.obs), moved.reward, terminated, truncated, infos

    def render(self) -> NDArray[np.uint8]:
        """The present picture, uint8 `[H, W, 3]`."""
        picture: NDArray[np.uint8] = self.world.render()
        return picture

    def close(self) -> None:
        """Close the world."""
        self.world.close()

    def _shown(self, obs: Named) -> Named:
        if not self._flat:
            return obs
        return {agent: flat(self._role_of[agent].observation_space, x) for agent, x in obs.items()}

    def _action(self, agent: str, action: Any) -> Any:
        space = self._role_of[agent].action_space
        return np.asarray(action).reshape(space.shape) if self._flat and isinstance(space, Box) else action


def _info(agent: str, masks: Named, shared: Mapping[str, float]) -> dict[str, Any]:
    return {**shared, "action_mask": masks[agent]} if agent in masks else dict(shared)


def _compute_on_the_cpu() -> None:
    """An env runner leaves accelerators to the learner."""
    import jax

    jax.config.update("jax_platforms", "cpu")


class CountCallback(RLlibCallback):  # type: ignore[misc] # untyped base
    """Hands what the worlds of an env runner counted over with its samples: sums, not RLlib's smoothed means."""

    def on_sample_end(self, *, env_runner: Any, metrics_logger: Any, **_: Any) -> None:
        """Called in the env runner, in whichever process it is."""
        for env in env_runner.env.envs:
            for name, amount in env.unwrapped.counter.take().items():
                metrics_logger.log_value((COUNTS, name), amount, reduce="sum")


# ---- training --------------------------------------------------------------------------------------------------------


def module_of(modules: Mapping[str, str], agent: str, *_: Any, **__: Any) -> str:
    """RLlib's `policy_mapping_fn`."""
    return modules[agent]


def algorithm_config(training: Training) -> Any:
    """RLlib's own configuration of it (an `AlgorithmConfig`)."""
    from ray.rllib.algorithms.impala import IMPALAConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    options, ppo = training.options, training.algorithm == "PPO"
    env_config = {
        "world": training.world,
        "options": dict(training.world_options),
        "flat": True,
        "faults": dataclasses.asdict(training.faults),
    }
    config = PPOConfig() if ppo else IMPALAConfig()
    config.environment(RllibEnv, env_config=env_config, disable_env_checking=True)
    config.env_runners(
        num_env_runners=training.num_env_runners,
        num_envs_per_env_runner=training.envs_per_runner,
        rollout_fragment_length="auto" if ppo else options["rollout"],
        sample_timeout_s=PATIENCE_S,  # what comes later is thrown away
    )
    config.multi_agent(
        policies=set(training.modules.values()),
        policy_mapping_fn=functools.partial(module_of, dict(training.modules)),
    )
    config.rl_module(
        model_config=DefaultModelConfig(
            fcnet_hiddens=list(options["hidden_sizes"]),
            fcnet_activation=options["activation"],
            vf_share_layers=options["shared_value"],
        )
    )
    config.training(
        lr=options["learning_rate"],
        gamma=options["gamma"],
        vf_loss_coeff=options["value_coef"],
        entropy_coeff=options["entropy_coef"],
        grad_clip=options["max_grad_norm"],
        train_batch_size_per_learner=options["train_batch_size"],
    )
    config.learners(num_learners=0)
    config.fault_tolerance(restart_failed_env_runners=False)
    config.callbacks(CountCallback)
    config.debugging(seed=training.seed, log_level="ERROR")
    if ppo:
        config.training(
            num_epochs=options["epochs"],
            minibatch_size=options["minibatch_size"],
            lambda_=options["gae_lambda"],
            clip_param=options["clip"],
            vf_clip_param=float("inf") if options["value_clip"] is None else options["value_clip"],
            use_kl_loss=options["kl_coef"] > 0,
            kl_coeff=options["kl_coef"],
            kl_target=options["kl_target"],
        )
    else:
        config.training(
            vtrace_clip_rho_threshold=options["rho_clip"], vtrace_clip_pg_rho_threshold=options["pg_rho_clip"]
        )
        # Without an aggregator a learner in this process gets no samples (Ray 2.60).
        config.learners(num_aggregator_actors_per_learner=1)
        config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=options["train_batch_size"])
    return config


class RllibTrainer:
    """RLlib's PPO or IMPALA on a world, its learner in this process. Ray must be up.

    Raises: UserError if RLlib refuses the options; RunError if an env runner cannot start.
    """

    def __init__(self, training: Training) -> None:
        import torch

        _hush()
        torch.set_num_threads(1)  # more wait for each other at every small operation
        self.training = training
        self.modules = sorted(set(training.modules.values()))
        self._told = 0  # characters of the report of faults
        with quiet():
            try:
                config = algorithm_config(training)
                config.validate()
            except (ValueError, KeyError) as error:
                raise UserError(f"RLlib refuses these options: {_first_line(error)}") from error
        self.algorithm = self._guarded("cannot start", config.build_algo)
        _hush()  # it sets a level of its own

    def train(self) -> Iteration:
        """One iteration of RLlib's.

        Raises: RunError, or the world's own error, if a runner fails or nothing comes.
        """
        began, version = time.monotonic(), self.updates()
        while True:
            result = self._guarded("failed", self.algorithm.train)
            counts = {name: float(value) for name, value in part(result, "env_runners", COUNTS).items()}
            if not counts and time.monotonic() - began > PATIENCE_S:
                raise RunError(f"RLlib's env runners delivered no env step in {PATIENCE_S:.0f} s")
            if counts:
                acted = part(result, "env_runners").get("weights_seq_no")
                return Iteration(
                    counts,
                    {module: learner_metrics(part(result, "learners", module)) for module in self.modules},
                    0.0 if acted is None else max(0.0, version - float(acted)),
                )

    def updates(self) -> int:
        """How many batches the learner has learned from, over the whole run."""
        return updates(self._learner())

    def parameters(self) -> dict[str, list[dict[str, NDArray[np.float32]]]]:
        """By module the layers of its policy network, `{"weight": [out, in], "bias": [out]}` each."""
        return {module: policy_layers(state) for module, state in self._learner().module.get_state().items()}

    def state(self) -> Tree:
        """The learner as a plain tree of arrays: networks, optimisers, KL weights, torch's random numbers.

        Not in it: the worlds' open episodes and what asynchronous runners have under way.
        """
        return learner_state(self._learner(), self.modules)

    def restore(self, stored: Tree) -> None:
        """Go on from `state`, on a trainer that has just been made; its worlds begin new episodes.

        Raises: CheckpointError if it is of other networks.
        """
        restore_learner(self._learner(), stored)
        hand_out = functools.partial(
            self.algorithm.env_runner_group.sync_weights,
            from_worker_or_learner_group=self.algorithm.learner_group,
            inference_only=True,
        )
        self._guarded("failed", hand_out)

    def close(self) -> None:
        """End the env runners."""
        with quiet():
            self.algorithm.stop()

    def faults(self) -> list[dict[str, Any]]:
        """`text` and `fatal` of what went wrong in worlds since the last call."""
        try:
            with open(self.training.faults.report, encoding="utf-8") as file:
                file.seek(self._told)
                lines = file.readlines()
                self._told = file.tell()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        """What a call of RLlib's gives; what goes wrong in it is one of our errors, in one line."""
        try:
            with quiet():
                return call()
        except (ray.exceptions.RayError, RuntimeError, OSError) as error:
            for fault in self.faults():
                if fault["fatal"]:
                    raise WorldError(fault["text"]) from error
            raise RunError(f"RLlib {what}: {_first_line(_cause(error))}") from error

    def _learner(self) -> Any:
        """The learner, at rest: an asynchronous one has learned from all that it was given."""
        learner = self.algorithm.learner_group._learner
        waiting = getattr(learner, "_learner_thread_in_queue", None)
        if waiting is not None:
            waiting.join()
        return learner


# ---- errors ----------------------------------------------------------------------------------------------------------


def quiet() -> warnings.catch_warnings[None]:
    """RLlib's own deprecations are not for our user."""
    return warnings.catch_warnings(action="ignore")


def _hush() -> None:
    """What fails is raised here, in one line."""
    for name in ("ray", "ray.rllib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _cause(error: BaseException) -> BaseException:
    """What an error in another process, or one without a message, came from."""
    cause = getattr(error, "cause", None) or (error.__cause__ if not str(error) else None)
    return error if cause is None else cause


def _first_line(error: BaseException) -> str:
    lines = [line for line in inspect.cleandoc(str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
