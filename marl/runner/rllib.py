"""A run whose learner is RLlib's: used as `Fused` and `Local` are, so that the one training loop drives it.

Ray and torch are imported when the run starts (`marl.interop.rllib`), not before.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import shutil
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from marl.core.errors import RunError
from marl.core.types import Tree
from marl.dataflow.learning import DispatchResult
from marl.dataflow.ray_session import Session, SessionOptions
from marl.io import checkpoint
from marl.runner.plan import Plan
from marl.runner.schema import ExperimentConfig, RllibConfig

if TYPE_CHECKING:
    from marl.interop.rllib import RllibTrainer
    from marl.interop.rllib_learner import Training

KIND = "rllib"
OBJECT_STORE_BYTES = 512 * 2**20  # samples pass through it; they are small
RESTARTED = "RLlib keeps no open episodes: the worlds begin new ones"


class RllibRun:
    """RLlib's algorithm on every seed of a run, one after another in each dispatch.

    trainings: by seed what to train.  policies: by policy name its roles, and by role the modules that play its agents,
    one for all of them or one for each.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        policies: Mapping[str, Mapping[str, Sequence[str]]],
        num_envs: int,
        iterations: int,
    ) -> None:
        self.trainings = tuple(trainings)
        self.policies = {name: dict(roles) for name, roles in policies.items()}
        self.roles = [role for roles in policies.values() for role in roles]
        self.seeds = tuple(training.seed for training in trainings)
        self.num_envs = num_envs
        self.iterations = iterations
        self.devices = jax.devices("cpu")[:1]
        self.trainers: list[RllibTrainer] = []
        self._session: Session | None = None
        self._folder: Path | None = None
        self._events: list[tuple[int, str, str]] = []
        self._metrics: list[dict[str, dict[str, float]]] = [{name: {} for name in policies} for _ in trainings]
        self._info: dict[str, None] = {}  # the names seen so far, in order

    def init(self) -> RllibRun:
        """Start Ray and RLlib. Raises: RunError if they do not start; UserError if RLlib refuses the options."""
        each = self.trainings[0].num_env_runners + 2  # the learner's process, and IMPALA's aggregator
        handler = signal.getsignal(signal.SIGTERM)
        options = SessionOptions(cpus=each * len(self.trainings), object_store_bytes=OBJECT_STORE_BYTES)
        self._session = Session(options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray takes it; a run is to save a checkpoint
        from marl.interop.rllib import RllibTrainer  # Ray reads its environment when it is imported

        self._folder = Path(tempfile.mkdtemp(prefix="marl-rllib-"))
        for training in self.trainings:
            faults = dataclasses.replace(training.faults, report=str(self._folder / f"{training.seed}.jsonl"))
            self.trainers.append(RllibTrainer(dataclasses.replace(training, faults=faults)))
        return self

    def dispatch(self, state: RllibRun, env_steps: Sequence[int]) -> tuple[RllibRun, DispatchResult]:
        """`iterations` of RLlib's own iterations for every seed. env_steps: counted in the worlds themselves.

        Raises: RunError if a loss is not finite, which RLlib does not recover from, or an env runner fails.
        """
        del env_steps
        counted: list[dict[str, float]] = []
        updates, lags = [], []
        for index, trainer in enumerate(self.trainers):
            before, seen = trainer.updates(), []
            totals: dict[str, float] = {}
            for _ in range(self.iterations):
                told = trainer.train()
                totals = {
                    name: totals.get(name, 0.0) + told.counts.get(name, 0.0) for name in {**totals, **told.counts}
                }
                seen.append(told.lag)
                self._note(index, told.metrics)
            words = [fault["text"] for fault in trainer.faults()]
            self._events.extend((self.seeds[index], "world fault", text) for text in words)
            counted.append(totals)
            updates.append(trainer.updates() - before)
            lags.append(sum(seen) / len(seen))
        return state, self._result(counted, updates, lags)

    def _note(self, index: int, by_module: Mapping[str, Mapping[str, float]]) -> None:
        """Keep the newest metrics of a seed, by policy: the mean over its modules."""
        for name, roles in self.policies.items():
            told = [by_module[module] for modules in roles.values() for module in modules if by_module[module]]
            for tag in told[0] if told else ():
                value = float(np.mean([metrics[tag] for metrics in told if tag in metrics]))
                if not math.isfinite(value) and tag.startswith("loss/"):
                    raise RunError(
                        f"'{name}' has diverged: RLlib's {tag} is {value}; a smaller learning_rate or max_grad_norm "
                        "usually helps"
                    )
                self._metrics[index][name][tag] = value

    def _result(
        self, counted: Sequence[Mapping[str, float]], updates: Sequence[int], lags: Sequence[float]
    ) -> DispatchResult:
        """What the loop writes down; leaves `[seed]`."""
        for totals in counted:
            self._info.update(dict.fromkeys(n.removeprefix("info/") for n in sorted(totals) if n.startswith("info/")))

        def stacked(name: str, dtype: Any = np.float32) -> NDArray[Any]:
            return np.array([totals.get(name, 0.0) for totals in counted], dtype)

        tags = {name: {tag: None for own in self._metrics for tag in own[name]} for name in self.policies}
        make: Any = DispatchResult  # of NumPy's numbers
        result: DispatchResult = make(
            metrics={
                name: {tag: np.array([own[name].get(tag, 0.0) for own in self._metrics], np.float32) for tag in found}
                for name, found in tags.items()
            },
            env_steps=stacked("env_steps", np.int64),
            agent_steps=stacked("agent_steps", np.int64),
            updates={name: np.array(updates, np.int64) for name in self.policies},
            skipped={name: np.zeros(len(counted), np.int32) for name in self.policies},
            episodes=stacked("episodes", np.int64),
            returns={role: stacked(f"return/{role}") for role in self.roles},
            length=stacked("length"),
            info={name: stacked(f"info/{name}") for name in self._info},
            flow={"flow/policy_lag": np.array(lags, np.float64)},
        )
        return result

    def published(self, state: RllibRun, seed_index: int) -> dict[str, Tree]:
        """Parameters of every policy as `marl.agents.rllib` acts with them."""
        layers = state.trainers[seed_index].parameters()
        return {
            name: {role: _stacked([layers[module] for module in modules]) for role, modules in roles.items()}
            for name, roles in self.policies.items()
        }

    def rows_per_dispatch(self) -> int:
        """Rows a seed collects in a dispatch, about."""
        return self.iterations * int(self.trainings[0].options["train_batch_size"])

    def snapshot(self, state: RllibRun) -> dict[str, Any]:
        """The learners as a plain tree of arrays."""
        return {"learners": [trainer.state() for trainer in state.trainers]}

    def compile(self, state: RllibRun) -> None:
        """Nothing is compiled."""

    def load(self, path: Path, state: RllibRun) -> tuple[RllibRun, dict[str, Any]]:
        """The started learners brought to where a checkpoint was taken, and its header.

        Raises: CheckpointError if it is damaged or of other networks.
        """
        stored, header = checkpoint.load_plain(path)
        for trainer, own in zip(state.trainers, stored["learners"], strict=True):
            trainer.restore(own)
        self._events.extend((seed, "episodes restarted", RESTARTED) for seed in self.seeds)
        return state, header

    def describe(self) -> str:
        """What runs where, in words."""
        first = self.trainings[0]
        runners = first.num_env_runners
        where = f"{runners} env runners" if runners else "this process"
        return (
            f"RLlib's {first.algorithm} x {len(self.seeds)} seeds, {self.num_envs} worlds in {where}, learner in this "
            "process on the CPU with one torch thread; not reproducible"
        )

    def bottleneck(self) -> str:
        """Not known of RLlib."""
        return ""

    def take_events(self) -> list[tuple[int, str, str]]:
        """(seed, name, words) of what happened since the last call."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """End the env runners, and Ray if it was started here."""
        trainers, self.trainers = self.trainers, []
        for trainer in trainers:
            trainer.close()
        if self._session is not None:
            self._session.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _stacked(networks: Sequence[Sequence[Mapping[str, NDArray[np.float32]]]]) -> Tree:
    """Layers `[G, ...]` of the networks that play a role."""
    return [
        {part: np.stack([layer[part] for layer in same]) for part in ("weight", "bias")}
        for same in zip(*networks, strict=True)
    ]


# ---- from a config ---------------------------------------------------------------------------------------------------


def check_trained_by(config: ExperimentConfig, plan: Plan) -> None:
    """That what learns fits the dataflow, where RLlib is either of them.

    Raises: ConfigError if RLlib is to train what is not its own or another dataflow what is, roles are played by
    anything else beside it, its policies differ in their options, the world has action masks, a device is asked for,
    or torch is not installed.
    """
    theirs = [name for name in plan.learners if getattr(plan.policies[name], "trained_by", None) == KIND]
    source, dataflow = config.source, config.dataflow
    if not isinstance(dataflow, RllibConfig):
        if theirs:
            text = f"{dataflow.kind} cannot train '{theirs[0]}', which RLlib trains; expected rllib, or no kind at all"
            raise source.error(("dataflow", "kind"), text)
        return
    if plan.population is not None and not theirs:
        return  # which says itself that RLlib is not what searches
    for name in plan.policies:
        if name not in theirs:
            text = "RLlib trains all roles or none; expected rllib/PPO or rllib/IMPALA for this one, too, to be trained"
            raise source.error(("agents", name, "algorithm"), text)
    first, *others = theirs
    for name in others:
        if type(plan.policies[name]) is not type(plan.policies[first]):
            text = f"RLlib trains all roles with one algorithm; expected {config.agents[first].algorithm}"
            raise source.error(("agents", name, "algorithm"), text)
        mine, its = (plan.cast[n].config.model_dump() for n in (first, name))
        for key in mine:
            if its[key] != mine[key]:
                text = f"{its[key]!r} differs from {mine[key]!r} of '{first}'; RLlib takes the same options for all"
                raise source.error(("agents", name, key), text)
    _check_parts(config, plan, first, dataflow)


def _check_parts(config: ExperimentConfig, plan: Plan, first: str, dataflow: RllibConfig) -> None:
    source, algorithm = config.source, config.agents[first].algorithm
    for part in ("actors", "inference", "learner"):
        if (asked := getattr(dataflow.devices, part)) not in ("auto", "cpu"):
            text = f"'{asked}' is asked for, but RLlib computes on the CPU here; expected auto or cpu"
            raise source.error(("dataflow", "devices", part), text)
    if algorithm.endswith("IMPALA") and not dataflow.num_env_runners:
        text = "IMPALA learns from processes that act at the same time; expected at least 1"
        raise source.error(("dataflow", "num_env_runners"), text)
    masked = sorted(_masked(plan))
    if masked:
        text = (
            f"the networks of RLlib know no action masks, which role '{masked[0]}' has; expected ppo or another of ours"
        )
        raise source.error(("agents", first, "algorithm"), text)
    if importlib.util.find_spec("torch") is None:
        text = f"{algorithm} learns with torch, which is not installed: pip install 'marl-platform[rllib-torch]'"
        raise source.error(("agents", first, "algorithm"), text)


def _masked(plan: Plan) -> set[str]:
    """Roles whose agents may not do everything."""
    if plan.host is not None:
        return set(getattr(plan.env, "masked", ()))
    env = plan.jax_env
    _, row = jax.eval_shape(env.reset, jax.random.key(0), env.default_params)
    return set(row.action_mask or {})


def build_rllib(config: ExperimentConfig, plan: Plan) -> RllibRun:
    """RLlib's run of a resolved config. Nothing starts before `init`. Raises: ConfigError as `check_trained_by`."""
    from marl.interop.rllib_learner import Training
    from marl.interop.rllib_world import Faults, agent_name

    check_trained_by(config, plan)
    dataflow = config.dataflow
    assert isinstance(dataflow, RllibConfig)
    cast = plan.cast[plan.learners[0]]
    options = cast.config.model_dump(mode="json")
    policies: dict[str, dict[str, list[str]]] = {}
    modules: dict[str, str] = {}
    for name in plan.learners:
        policies[name] = {}
        for role in plan.cast[name].roles:
            agents = [agent_name(role.name, index) for index in range(role.size)]
            own = [role.name] * role.size if options["sharing"] == "role" else agents
            modules.update(zip(agents, own, strict=True))
            policies[name][role.name] = list(dict.fromkeys(own))
    world = env_config(plan)
    trainings = [
        Training(
            algorithm=config.agents[plan.learners[0]].algorithm.rpartition("/")[2],
            options=options,
            world=world["world"],
            world_options=world["options"],
            modules=modules,
            faults=Faults(dataflow.world_faults.share, dataflow.world_faults.grace, ""),
            num_env_runners=dataflow.num_env_runners,
            envs_per_runner=dataflow.envs_per_runner,
            seed=seed,
        )
        for seed in config.seed_list
    ]
    return RllibRun(trainings, policies, dataflow.num_envs, dataflow.updates_per_dispatch)


def env_config(plan: Plan) -> dict[str, Any]:
    """The world of a plan as the `env_config` of `marl.interop.rllib.RllibEnv`."""
    if plan.host is not None:
        arguments = plan.host.factory.arguments
        return {"world": arguments["id"], "options": dict(arguments["options"])}
    made = type(plan.env)
    return {"world": f"{made.__module__}:{made.__qualname__}", "options": dict(plan.config.env.options)}
