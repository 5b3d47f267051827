"""What each command of `marl` does, as one short function. Heavy imports happen inside, after the input was read."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from marl.core.errors import UserError
from marl.io.console import next_commands, say


def train(args: argparse.Namespace) -> int:
    """Train an experiment, or with `--dry-run` say what that would take."""
    from marl.runner.load import load_experiment

    config = load_experiment(args.config, args.overrides).config
    if args.dry_run:
        say(f"# {config.name}: starting JAX and compiling the whole program, which takes a moment")
        from marl.runner.train import dry_run

        text, facts = dry_run(config)
        say(text.rstrip())
        say("\n".join(f"# {name}: {value}" for name, value in facts.items()))
        next_commands([" ".join(["marl train", args.config, *args.overrides])])
        return 0
    if not args.quiet:
        say(f"{config.name}: {config.env.id}, seeds {', '.join(map(str, config.seed_list))}; starting JAX")
    from marl.runner.train import train as run

    return run(config, runs_dir=args.runs_dir, quiet=args.quiet)


def resume(args: argparse.Namespace) -> int:
    """Go on with a run."""
    from marl.runner.runs import resolve_run

    folder = resolve_run(args.run, Path(args.runs_dir))
    if not args.quiet:
        say(f"resuming {folder}; starting JAX")
    from marl.runner.train import resume as run

    return run(str(folder), args.overrides, runs_dir=args.runs_dir, quiet=args.quiet)


def evaluate(args: argparse.Namespace) -> int:
    """Play fresh episodes with a trained run, or with an experiment in which nobody learns."""
    from marl.runner.runs import resolve_run

    if args.run.endswith((".yaml", ".yml")):
        from marl.runner.load import load_experiment

        config = load_experiment(args.run).config
        if not args.json:
            say(f"evaluating {config.name}; starting JAX")
        from marl.runner.evaluate import evaluate_experiment

        config = config.model_copy(update={"runs_dir": args.runs_dir})
        return evaluate_experiment(config, episodes=args.episodes, greedy=args.greedy, as_json=args.json)
    folder = resolve_run(args.run, Path(args.runs_dir))
    if not args.json:
        say(f"evaluating {folder}; starting JAX")
    from marl.runner.evaluate import evaluate as run

    return run(str(folder), episodes=args.episodes, greedy=args.greedy, best=args.best, as_json=args.json)


def render(args: argparse.Namespace) -> int:
    """Film one episode of a trained run."""
    from marl.runner.runs import resolve_run

    folder = resolve_run(args.run, Path(args.runs_dir))
    output = Path(args.output)
    if output.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(f"-o {args.output}: a film is a .gif or .mp4 file; expected a name with one of these endings")
    if not output.parent.is_dir():
        raise UserError(f"-o {args.output}: there is no folder '{output.parent}'")
    say(f"rendering {folder}; starting JAX")
    from marl.runner.render import render as run

    return run(str(folder), output, episode_seed=args.episode_seed, seed=args.seed, greedy=args.greedy, best=args.best)


def report(args: argparse.Namespace) -> int:
    """Compare runs."""
    from marl.runner.report import report as run

    return run(args.runs, args.output, runs_dir=args.runs_dir, as_json=args.json)


def list(args: argparse.Namespace) -> int:
    """List worlds, algorithms, experiments or runs."""
    from marl.runner.listing import rows, table

    found = rows(args.kind, Path(args.runs_dir))
    if args.json:
        say(json.dumps(found, indent=2))
        return 0
    if not found:
        say(f"no {args.kind} yet" + (f" in '{args.runs_dir}'" if args.kind == "runs" else ""))
    else:
        say(table(found))
    following = {
        "envs": "marl check cartpole_v0",
        "agents": "marl check ppo",
        "experiments": "marl train quickstart",
        "runs": "marl evaluate latest" if found else "marl train quickstart",
    }
    next_commands([following[args.kind]])
    return 0


def check(args: argparse.Namespace) -> int:
    """Check a world, an algorithm or an experiment."""
    from marl.runner.check import check as run

    return run(args.target, args.overrides)


def init(args: argparse.Namespace) -> int:
    """Begin a world or an algorithm."""
    from marl.runner.init import init as run

    return run(args.kind, args.name, jax=args.jax)


def bench(args: argparse.Namespace) -> int:
    """Measure env steps per second."""
    from marl.runner.bench import bench as run

    return run(args.what, as_json=args.json)


def submit(args: argparse.Namespace) -> int:
    """Train on a Ray cluster, or look after a job there.

    Raises: UserError for a wrong config, address, token or version.
    """
    from marl.runner import jobs
    from marl.runner.listing import table
    from marl.runner.load import load_experiment, resolved_yaml

    if not args.address:
        raise UserError("marl submit: no --address; expected that of a Ray head, such as http://127.0.0.1:8265")
    job = args.status or args.stop or args.fetch
    if job and (args.config or args.overrides):
        raise UserError("marl submit: a CONFIG together with --status, --stop or --fetch; expected one of them")
    if not job and not args.config:
        raise UserError("marl submit: no CONFIG; expected a YAML file, or a packaged experiment: marl list experiments")
    if args.status:
        found = jobs.jobs(jobs.Cluster(args.address), args.status)
        say(json.dumps(found, indent=2) if args.json else table(found) if found else "no jobs yet")
        return 0
    if args.stop:
        return jobs.stop(jobs.Cluster(args.address), args.stop)
    if args.fetch:
        return 0 if jobs.fetch(jobs.Cluster(args.address), args.fetch, Path(args.runs_dir)) else 1
    config = load_experiment(args.config, args.overrides).config
    options = jobs.options_from(args)
    return jobs.submit(args.address, "train", resolved_yaml(config), config.name, (), options, Path(args.runs_dir))


def sweep(args: argparse.Namespace) -> int:
    """Try every combination of some values, here or as a job on a Ray cluster."""
    from marl.runner.sweep import SweepOptions, submit_sweep
    from marl.runner.sweep import sweep as run

    out = Path(args.out) if args.out else None
    options = SweepOptions(args.workers, args.trial_cpus, args.trial_gpus, args.role)
    if args.address:
        return submit_sweep(args, out, options)
    return run(args.config, args.overrides, out, options)


def doctor(args: argparse.Namespace) -> int:
    """Look at this machine and installation; 1 if something that training needs is broken."""
    from marl.runner.doctor import examine
    from marl.runner.listing import table

    findings = examine(Path(args.runs_dir))
    broken = any(finding["state"] == "broken" for finding in findings)
    if args.json:
        say(json.dumps(findings, indent=2))
        return int(broken)
    say(table(findings))
    next_commands(["marl doctor --json"] if broken else ["marl train quickstart"])
    return int(broken)


def tensorboard(args: argparse.Namespace) -> int:
    """Become TensorBoard on the folder of a run, or of all runs.

    Raises: UserError if TensorBoard is not installed or there is nothing to show.
    """
    from marl.runner.runs import list_runs, resolve_run

    runs_dir = Path(args.runs_dir)
    folder = resolve_run(args.run, runs_dir) if args.run else runs_dir
    if not args.run and not list_runs(runs_dir):
        raise UserError(f"there are no runs in '{runs_dir}'; start one with: marl train quickstart")
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("the package tensorboard is not installed; expected it beside marl: pip install tensorboard")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(args.port)] if args.port else []
    say(f"starting TensorBoard on {folder}; stop it with Ctrl-C")
    os.execv(sys.executable, command)
