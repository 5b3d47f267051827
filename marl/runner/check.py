"""`marl check`: does a world keep its contract, does an algorithm act and learn, is an experiment right?"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from marl import agents, envs
from marl.core.errors import UserError
from marl.core.host import HostWorld
from marl.interop import worlds
from marl.io.console import next_commands, say
from marl.runner.explain import expected_one
from marl.runner.load import config_from, load_experiment, packaged_experiments, resolved_yaml
from marl.runner.schema import ExperimentConfig

Kind = Literal["world", "host world", "algorithm", "experiment"]

# Where an algorithm is tried, in this order: several agents with a global state, two roles, a control task, traffic.
TRIAL_WORLDS = ("probe_coordination_v0", "probe_roles_v0", "cartpole_v0", "heterogeneous_highway_v0")
TRIAL_LANES = 4


def check(target: str, overrides: Sequence[str] = ()) -> int:
    """Check a world, an algorithm or an experiment, whichever `target` names. 0 if all is well, 1 if not.

    target: a name, a file of an experiment, `package.module:Name`, `pettingzoo:MODULE`, `gymnasium:ID`, or a Python
    file with a world in it.  overrides: of an experiment, any key; of a world or an algorithm, its options.
    Raises: UserError if nothing has that name, or the experiment or an option is wrong.
    """
    if _is_python_file(target):
        target = worlds.in_file(target)
    kind = kind_of(target)
    if kind == "experiment":
        return _experiment(target, overrides)
    if kind == "host world":
        return _host_world(target, overrides)
    return _world(target, overrides) if kind == "world" else _algorithm(target, overrides)


def kind_of(target: str) -> Kind:
    """What a name stands for. `package.module:Name` is imported to find out.

    Raises: UserError if nothing has that name, with the nearest one.
    """
    own, algorithms, experiments = envs.REGISTRY.names(), agents.REGISTRY.names(), packaged_experiments()
    if worlds.is_host_world(target):
        return "host world"
    if target in own:
        return "world"
    if target in algorithms:
        return "algorithm"
    if target in experiments or Path(target).suffix in (".yaml", ".yml") or Path(target).exists():
        return "experiment"
    if ":" in target:
        found = envs.REGISTRY.resolve(target)
        if hasattr(found, "step") and hasattr(found, "reset"):
            return "world"
        if hasattr(found, "act"):
            return "algorithm"
        raise UserError(f"'{target}' is neither a world (reset, step) nor an algorithm (act)")
    known = [*own, *algorithms, *experiments]
    raise UserError(f"nothing is called '{target}'; {expected_one(target, known)}")


def _experiment(target: str, overrides: Sequence[str]) -> int:
    config = load_experiment(target, overrides).config
    from marl.runner.build import resolved
    from marl.runner.plan import make_plan

    plan = make_plan(config)
    say(resolved_yaml(resolved(plan)).rstrip())
    learners = ", ".join(plan.learners) or "nobody"
    say(f"ok: {config.env.id} with {_roles(plan.env)}; learning: {learners}")
    next_commands([" ".join(["marl train", target, *overrides])])
    return 0


def _world(target: str, overrides: Sequence[str]) -> int:
    from marl.core.conformance import check_environment
    from marl.runner.plan import make_world

    config = _trial(target, "random", [f"env.{text}" for text in overrides])
    say(f"checking {target}: whole episodes at random; compiling takes a moment")
    env = make_world(config)
    assert not isinstance(env, HostWorld)
    say(f"roles: {_roles(env)}")
    findings = check_environment(env)
    for finding in findings:
        say(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.detail}")
    wrong = sum(not finding.ok for finding in findings)
    if wrong:
        say(f"{wrong} of {len(findings)} checks failed")
        return 1
    next_commands([f"marl bench {target}"] if _has_bench() else ["marl list agents"])
    return 0


def _host_world(target: str, overrides: Sequence[str]) -> int:
    from marl.interop.check import check_world

    options = _trial(target, "random", [f"env.{text}" for text in overrides]).env.options
    say(f"checking {target}: whole episodes at random")
    findings = check_world(target, options)
    for finding in findings:
        say(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.name}: {finding.detail}")
    wrong = sum(not finding.ok for finding in findings)
    if wrong:
        say(f"{wrong} of {len(findings)} checks failed")
        return 1
    world = worlds.make_world(target, options)
    say(f"roles: {_roles(world)}{', in turns' if world.turn_based else ''}")
    world.close()
    name = re.sub(r"\W+", "_", re.split(r"[.:/]", target.removesuffix(".py"))[-1]).strip("_").lower() or "my_world"
    say(f"an experiment to begin with, as {name}.yaml:\n{_first_experiment(name, target, options)}")
    next_commands([f"marl train {name}.yaml"])
    return 0


def _first_experiment(name: str, target: str, options: dict[str, Any]) -> str:
    env = yaml.safe_dump({"id": target, **options}, default_flow_style=True, sort_keys=False, width=1000).strip()
    lines = [
        f"name: {name}",
        f"env: {env}",
        "agents: {all: {algorithm: ppo}}",
        "stop: {env_steps: 200_000}",
        "evaluate: {every: 50_000, episodes: 20}",
    ]
    return "\n".join(f"  {line}" for line in lines)


def _is_python_file(target: str) -> bool:
    return target.partition(":")[0].endswith(".py")


def _algorithm(target: str, overrides: Sequence[str]) -> int:
    import jax
    import numpy as np

    from marl.dataflow.fused import Fused
    from marl.evaluate.protocol import Evaluator
    from marl.runner.build import build_dataflow, resolved
    from marl.runner.plan import MisfitError, Plan, make_plan

    plan: Plan | None = None
    for world in TRIAL_WORLDS:
        config = _trial(world, target, [f"agents.all.{text}" for text in overrides])
        try:
            plan = make_plan(config)
            break
        except MisfitError:
            if world == TRIAL_WORLDS[-1]:
                raise
    assert plan is not None
    (policy,) = plan.policies.values()
    say(f"checking {target} on {plan.config.env.id} ({_roles(plan.env)}); compiling takes a moment")
    params: dict[str, Any] = {"all": ()}
    if plan.population is not None:
        run = build_dataflow(resolved(plan), plan)
        _, result = run.dispatch(run.init(), [0])  # type: ignore[arg-type]
        say(f"one generation: {int(result.episodes[0])} episodes, {int(result.env_steps[0])} env steps")
        params = run.published(run, 0)  # type: ignore[arg-type]
    elif hasattr(policy, "trained_by"):
        params = _trained_by_rllib(plan)
    elif plan.learners:
        fused = Fused(
            plan.jax_env,
            plan.policies,
            plan.learners,
            {},
            num_envs=TRIAL_LANES,
            seeds=(0,),
            updates_per_dispatch=1,
            devices=jax.devices()[:1],
        )
        state, result = fused.dispatch(fused.init(), [0])
        host = jax.device_get(result.metrics)["all"]
        bad = [name for name, value in host.items() if not np.isfinite(value).all()]
        say(f"one update of {policy.needs.rollout} rows in {TRIAL_LANES} lanes: {len(host)} metrics")
        if bad:
            say(f"WRONG  not finite: {', '.join(sorted(bad))}")
            return 1
        params = fused.published(state, 0)
    if plan.env.max_steps is not None:
        played = Evaluator(plan.jax_env, plan.policies, greedy=True).run(params, "test", TRIAL_LANES)
        means = ", ".join(f"{role} {value.mean():.4g}" for role, value in played.returns.items())
        say(f"{TRIAL_LANES} greedy episodes: return {means}")
    say("ok")
    next_commands(["marl list experiments"])
    return 0


def _trained_by_rllib(plan: Any) -> dict[str, Any]:
    """What one iteration of RLlib's leads to."""
    from marl.runner.build import resolved
    from marl.runner.rllib import build_rllib

    run: Any = build_rllib(resolved(plan), plan)
    with contextlib.closing(run):
        _, result = run.dispatch(run.init(), [0])
        say(f"one iteration of RLlib's: {int(result.env_steps[0])} env steps, {len(result.metrics['all'])} metrics")
        params: dict[str, Any] = run.published(run, 0)
    return params


def _trial(world: str, algorithm: str, overrides: Sequence[str]) -> ExperimentConfig:
    agent: dict[str, Any] = {"algorithm": algorithm}
    if algorithm.startswith("rllib/"):
        agent["train_batch_size"] = 256  # env steps, of processes
    data = {
        "name": "check",
        "env": {"id": world},
        "agents": {"all": agent},
        "stop": {"env_steps": 1},
        "dataflow": {"num_env_runners": 1} if algorithm.startswith("rllib/") else {"num_envs": TRIAL_LANES},
    }
    return config_from(data, overrides)


def _roles(env: Any) -> str:
    return ", ".join(f"{spec.size} {spec.name}" for spec in env.roles)


def _has_bench() -> bool:
    from importlib.util import find_spec

    return find_spec("marl.runner.bench") is not None
