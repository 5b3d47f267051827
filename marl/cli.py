"""`marl COMMAND ...`: argument parsing only. What a command does is one function in `marl.runner.commands`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from marl import __version__
from marl.core.errors import MarlError, UserError, did_you_mean

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the nearest valid name."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raises: UserError instead of leaving the program."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def options(self) -> list[str]:
        """The names of all options."""
        return [name for action in self._actions for name in action.option_strings]


def _experiment(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a packaged experiment: marl list experiments")
    _overrides(parser, "any key of the file, for example env.scenario=chaotic")


def _overrides(parser: Parser, text: str) -> None:
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)


def _run(parser: Parser, *, many: bool = False, optional: bool = False) -> None:
    text = "a run folder, its id, a name (its newest run) or latest"
    if many:
        parser.add_argument("runs", metavar="RUN", nargs="+", help=text)
    else:
        parser.add_argument("run", metavar="RUN", nargs="?" if optional else None, help=text)
    _runs_dir(parser)


def _runs_dir(parser: Parser, default: str | None = "runs") -> None:
    parser.add_argument("--runs-dir", metavar="DIR", default=default, help="where run folders are (default: runs)")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _count(text: str) -> int:
    """A whole number of at least 1; `2_000` and `2e3` are read as in a config."""
    from marl.runner.yaml_tree import parse_scalar

    value = parse_scalar(text)
    if type(value) is not int or value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected a whole number of at least 1")
    return value


def _index(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected a whole number of at least 0")
    return int(text)


def _one_of(*names: str) -> Callable[[str], str]:
    """The type of an argument that is one of some words."""

    def read(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected one of {', '.join(names)}{near}")
        return text

    return read


def _train(parser: Parser) -> None:
    _experiment(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the whole config, devices and memory; train nothing"
    )
    _runs_dir(parser, None)
    parser.add_argument("--quiet", action="store_true", help="no progress panel")


def _resume(parser: Parser) -> None:
    _run(parser)
    _overrides(parser, "keys of stop, evaluate and checkpoint, for example stop.env_steps=4_000_000")
    parser.add_argument("--quiet", action="store_true", help="no progress panel")


def _how(parser: Parser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--greedy", dest="greedy", action="store_const", const=True, help="take the likeliest action")
    how.add_argument("--sampled", dest="greedy", action="store_const", const=False, help="draw actions, as in training")
    parser.add_argument("--best", action="store_true", help="the policy with the best validation return, not the last")


def _evaluate(parser: Parser) -> None:
    _run(parser)
    parser.add_argument("--episodes", type=_count, metavar="N", help="episodes a seed (default: as in the config)")
    _how(parser)
    _json(parser)


def _render(parser: Parser) -> None:
    _run(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="a .gif or .mp4 file")
    parser.add_argument("--episode-seed", type=_index, default=0, metavar="N", help="which test episode (default: 0)")
    parser.add_argument("--seed", type=_index, metavar="N", help="which training seed of a group (default: the lowest)")
    _how(parser)


def _list(parser: Parser) -> None:
    kinds = ("envs", "agents", "experiments", "runs")
    parser.add_argument("kind", type=_one_of(*kinds), metavar="KIND", help=", ".join(kinds))
    _runs_dir(parser)
    _json(parser)


def _report(parser: Parser) -> None:
    _run(parser, many=True)
    parser.add_argument(
        "-o", "--output", metavar="DIR", help="where to write (default: plots/ of one run, report/ for several)"
    )
    _json(parser)


def _check(parser: Parser) -> None:
    parser.add_argument(
        "target",
        metavar="ENV|AGENT|CONFIG",
        help="a registered name, package.module:Name, pettingzoo:MODULE, gymnasium:ID, a .py or a .yaml file",
    )
    _overrides(parser, "for a CONFIG: any key of the file; for an ENV or AGENT: its options")


def _bench(parser: Parser) -> None:
    parser.add_argument("what", metavar="ENV|CONFIG", help="the name of a world, or an experiment")
    _json(parser)


def _doctor(parser: Parser) -> None:
    _runs_dir(parser)
    _json(parser)


def _tensorboard(parser: Parser) -> None:
    _run(parser, optional=True)
    parser.add_argument("--port", type=_count, metavar="N", help="the port to serve on (default: TensorBoard's)")


def _init(parser: Parser) -> None:
    parser.add_argument("kind", type=_one_of("env", "agent"), metavar="KIND", help="env or agent")
    parser.add_argument("name", metavar="NAME", help="what it is called, such as my_world")
    parser.add_argument("--jax", action="store_true", help="an env in JAX instead of a PettingZoo one")


def _seconds(text: str) -> int:
    """Whole seconds from `90`, `90s` or `2min`."""
    from marl.runner.schema import parse_duration
    from marl.runner.yaml_tree import parse_scalar

    try:
        value = parse_duration(parse_scalar(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected 1s to 1d")
    return round(value)


def _jobs(parser: Parser) -> None:
    """How a job runs on a Ray cluster and what comes back."""
    parser.add_argument("--address", metavar="URL", help="the dashboard of a Ray head, such as http://127.0.0.1:8265")
    parser.add_argument(
        "--remote-dir", metavar="DIR", default="~/marl-runs", help="where the job writes, on the cluster"
    )
    parser.add_argument("--checkpoints", action="store_true", help="bring checkpoints back, too (to resume here)")
    parser.add_argument("--no-fetch", action="store_true", help="bring nothing back")
    parser.add_argument("--no-wait", action="store_true", help="submit and leave")
    parser.add_argument(
        "--stop-wait", type=_seconds, metavar="TIME", default=120, help="what a stopped job has for its last checkpoint"
    )
    parser.add_argument("--with-code", action="store_true", help="ship this installation's code (default: use theirs)")
    parser.add_argument(
        "--with", dest="extra", metavar="PATH", action="append", default=[], help="ship a file or folder"
    )
    parser.add_argument("--python", metavar="PROGRAM", default="python", help="the Python on the cluster")
    parser.add_argument("--cpus", type=float, metavar="N", default=0.0, help="CPUs that the runner itself takes")
    parser.add_argument("--gpus", type=float, metavar="N", default=0.0, help="GPUs that the runner itself takes")


def _submit(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="as for marl train")
    _overrides(parser, "any key of the file, for example dataflow.actors=8")
    _jobs(parser)
    _runs_dir(parser)
    job = parser.add_mutually_exclusive_group()
    job.add_argument("--status", metavar="JOB", help="the state of a job, or of all")
    job.add_argument("--stop", metavar="JOB", help="stop a job; it saves a checkpoint first")
    job.add_argument("--fetch", metavar="JOB", help="bring back what a job wrote")
    _json(parser)


def _sweep(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="as for marl train")
    _overrides(parser, "a key and its value, or key=[a,b] to try each (a list that is one value: key=[[a,b]])")
    parser.add_argument("-o", "--out", metavar="DIR", help="where everything goes (default: sweeps/NAME)")
    parser.add_argument("--workers", type=_count, metavar="N", help="trials side by side, with Ray (default: 1)")
    parser.add_argument("--role", metavar="ROLE", help="rank by the return of this role (default: of all agents)")
    parser.add_argument("--trial-cpus", type=float, metavar="N", default=1.0, help="CPUs a trial takes of a cluster")
    parser.add_argument("--trial-gpus", type=float, metavar="N", default=0.0, help="GPUs a trial takes, also a part")
    _jobs(parser)


# name: (what --help says, an example, the module that must be there, its arguments)
COMMANDS: dict[str, tuple[str, str, str, Callable[[Parser], None]]] = {
    "train": ("train an experiment", "marl train quickstart stop.env_steps=50_000", "train", _train),
    "resume": (
        "go on with a run from its newest checkpoint",
        "marl resume latest stop.env_steps=4e6",
        "train",
        _resume,
    ),
    "evaluate": (
        "play fresh episodes with a trained run",
        "marl evaluate latest --episodes 256",
        "evaluate",
        _evaluate,
    ),
    "render": ("film one episode of a trained run", "marl render latest -o episode.gif", "render", _render),
    "report": ("compare runs: curves, intervals, tables", "marl report quickstart -o report", "report", _report),
    "list": ("list envs, agents, experiments or runs", "marl list runs --json", "listing", _list),
    "check": ("check a world, an algorithm or an experiment", "marl check cartpole_v0", "check", _check),
    "bench": ("measure env steps per second", "marl bench heterogeneous_highway_v0 --json", "bench", _bench),
    "init": ("begin a world or an algorithm of your own", "marl init env my_world", "init", _init),
    "submit": (
        "train on a Ray cluster",
        "marl submit quickstart --address http://127.0.0.1:8265",
        "jobs",
        _submit,
    ),
    "sweep": (
        "try every combination of some values",
        "marl sweep quickstart agents.vehicle.learning_rate=[1e-3,3e-4] seed=[1,2] --workers 2",
        "sweep",
        _sweep,
    ),
    "doctor": ("look at this machine and installation", "marl doctor", "doctor", _doctor),
    "tensorboard": ("open the curves of a run, or of all runs", "marl tensorboard latest", "commands", _tensorboard),
}


def commands() -> list[str]:
    """The commands of this installation."""
    return [name for name, entry in COMMANDS.items() if importlib.util.find_spec(f"marl.runner.{entry[2]}")]


def make_parser(known: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """The parser of `marl`, and those of its commands."""
    parser = Parser(
        prog="marl",
        description="Multi-agent reinforcement learning on JAX.",
        epilog="example:\n  marl train quickstart\n\nmarl COMMAND --help tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"marl {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    made = {}
    for name in known:
        text, example, _, add = COMMANDS[name]
        made[name] = subparsers.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example:\n  {example}"
        )
        add(made[name])
    return parser, made


def parse(argv: Sequence[str]) -> argparse.Namespace | None:
    """The arguments of a command; None where there is none (and the help was printed).

    Raises: UserError with the nearest valid name.
    """
    known = commands()
    parser, made = make_parser(known)
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in known:
        raise UserError(f"unknown command '{first}'; expected one of {', '.join(known)}{did_you_mean(first, known)}")
    args, rest = parser.parse_known_args(argv)
    if args.command is None and not rest:
        parser.print_help()
        return None
    options = made[args.command].options() if args.command else parser.options()
    for word in rest:
        if word.startswith("-") or not hasattr(args, "overrides"):
            near = did_you_mean(word.partition("=")[0], options)
            raise UserError(f"unexpected argument '{word}'; expected one of {', '.join(options)}{near}")
        args.overrides = [*args.overrides, word]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    # SIGTERM, which a job scheduler sends, is treated like Ctrl-C; training itself saves a checkpoint first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        if args is None:
            return DONE
        from marl.runner import commands as handlers

        code: int = getattr(handlers, args.command)(args)
        sys.stdout.flush()
        return code
    except MarlError as error:
        _complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the outermost loop: nothing but a line for the user, the rest in a file
        _complain(f"error: unexpected {type(error).__name__}: {_first_line(error)}; {_write_log()}")
        return FAILED


def _complain(text: str) -> None:
    """One line on standard error, whatever a file or a name brought into it."""
    with contextlib.suppress(OSError):
        print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def _write_log() -> str:
    """Keep the traceback of the error in hand; says where."""
    try:
        prefix = time.strftime("marl-error-%Y%m%d-%H%M%S-")
        with tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=".log", delete=False) as file:
            file.write(f"marl {__version__}: {' '.join(sys.argv)}\n{traceback.format_exc()}")
    except OSError:
        return "its traceback could not be written"
    return f"its traceback is in {file.name}"


if __name__ == "__main__":
    sys.exit(main())
