"""What a person sees: lines, a live panel on a terminal, plain lines elsewhere. The only module here that prints."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from marl.io.metrics import Row

if TYPE_CHECKING:
    from rich.live import Live

_RETURN_TAG = re.compile(r"(episode|eval)/return(?:/(.+))?")
_CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
_PLAIN_EVERY_S = 5.0
_REFRESH_HZ = 2.0

_active: list[Panel] = []  # the panel on the screen, if any: lines go above it


def say(line: str) -> None:
    """Print one line to standard output (above the live panel if there is one). Control characters are dropped."""
    if _active:
        _active[-1].line(line)
    else:
        _print(line, sys.stdout)


def error(message: str) -> None:
    """Print `error: <message>` to standard error."""
    _print(f"error: {message}", sys.stderr)


def next_commands(commands: Sequence[str]) -> None:
    """Print the commands that a person may want to type next."""
    say("next:\n" + "\n".join(f"  {command}" for command in commands))


def _print(line: str, stream: TextIO) -> None:
    try:
        print(line.translate(_CONTROL), file=stream, flush=True)
    except BrokenPipeError:
        # The reader (head, say) is gone; keep the interpreter from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except UnicodeEncodeError:
        print(line.translate(_CONTROL).encode("ascii", "replace").decode(), file=stream, flush=True)


class Panel:
    """Progress of a run: live on a terminal, else a plain line every few seconds and one for every evaluation.

    stop: limits as in the experiment file, any of `env_steps`, `wall_time` (seconds), `return`; progress is the most
    advanced of the first two.  quiet: shows nothing but lines given to `line`.  Used as a context manager.
    """

    def __init__(
        self,
        title: str,
        stop: Mapping[str, float | None],
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        live: bool | None = None,
        every_s: float = _PLAIN_EVERY_S,
    ) -> None:
        self.title = title
        self.quiet = quiet
        self._stop = {name: float(limit) for name, limit in stop.items() if limit}
        self._stream = stream or sys.stdout
        self._live_wanted = (self._stream.isatty() if live is None else live) and not quiet
        self._every_s = every_s
        self._live: Live | None = None
        self._began = self._last_plain = time.monotonic()
        self._base_steps: float | None = None
        self._wall_before_s = 0.0
        self._phase: tuple[str, str] = ("starting", "")
        self._phase_began = self._began
        self._env_steps = 0.0
        self._updates = 0
        self._returns: dict[tuple[str, str], dict[int, float]] = {}
        self._perf: dict[str, float] = {}
        self._first_update: float | None = None

    def __enter__(self) -> Panel:
        if self._live_wanted:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self._stream, highlight=False, markup=False, force_terminal=True)
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=_REFRESH_HZ)
            self._live.start()
        _active.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the last picture where it is; lines come below it from now on. Stopping twice is allowed."""
        if self in _active:
            _active.remove(self)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str, detail: str = "") -> None:
        """What the program is doing: `compiling`, `training`, `evaluating`, `saving`.

        Plain mode prints each change once.
        """
        if (name, detail) == self._phase:
            return
        changed = name != self._phase[0]
        self._phase = (name, detail)
        self._phase_began = time.monotonic()
        if self._live is not None:
            self._live.refresh()
        elif changed and not self.quiet and name in ("compiling", "saving"):
            self.line(f"{name} {detail}".rstrip())

    def line(self, text: str) -> None:
        """Print one line, above the live panel."""
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(text.translate(_CONTROL)), soft_wrap=True)
        else:
            _print(text, self._stream)

    def resumed(self, wall_s: float) -> None:
        """Seconds of the run that earlier processes used: they count for the stop rule."""
        self._wall_before_s = wall_s

    def row(self, row: Row) -> None:
        """Take a metrics row: counters, returns by role, speed."""
        env_steps = float(row.get("env_steps", 0))
        if self._base_steps is None:
            self._base_steps, self._first_update = env_steps, time.monotonic()
        self._env_steps = max(self._env_steps, env_steps)
        self._updates = max(self._updates, int(row.get("updates", 0)))
        seed = int(row.get("seed", 0))
        evaluation = []
        for tag, value in row.items():
            match = _RETURN_TAG.fullmatch(tag)
            if match and isinstance(value, int | float):
                self._returns.setdefault((match[1], match[2] or ""), {})[seed] = float(value)
                evaluation.append(f"{match[2] or 'return'} {value:.4g}")
            elif tag.startswith("perf/") and isinstance(value, int | float):
                self._perf[tag.removeprefix("perf/")] = float(value)
        if self._live is not None or self.quiet:
            return
        if row.get("kind") == "eval":
            self.line(f"eval   seed {seed}  env steps {int(env_steps):,}  return: {', '.join(evaluation) or 'none'}")
        elif time.monotonic() - self._last_plain >= self._every_s:
            self._last_plain = time.monotonic()
            self.line(self._plain())

    def fraction(self) -> float | None:
        """Progress in [0, 1] to the nearest stop rule that can be foreseen, or None."""
        parts = []
        if "env_steps" in self._stop:
            parts.append(self._env_steps / self._stop["env_steps"])
        if "wall_time" in self._stop:
            parts.append((self._wall_before_s + time.monotonic() - self._began) / self._stop["wall_time"])
        return min(1.0, max(parts)) if parts else None

    def eta_s(self) -> float | None:
        """Seconds that are left, by this process's mean speed since its first row; None while unknown."""
        left = []
        if "env_steps" in self._stop and self._first_update is not None and self._base_steps is not None:
            spent, done = time.monotonic() - self._first_update, self._env_steps - self._base_steps
            if done > 0:
                left.append(max(0.0, self._stop["env_steps"] - self._env_steps) * spent / done)
        if "wall_time" in self._stop:
            used = self._wall_before_s + time.monotonic() - self._began
            left.append(max(0.0, self._stop["wall_time"] - used))
        return min(left) if left else None

    def _mean_returns(self, kind: str) -> dict[str, float]:
        """By role, the mean over seeds of the latest value."""
        return {
            role: sum(by_seed.values()) / len(by_seed)
            for (of_kind, role), by_seed in sorted(self._returns.items())
            if of_kind == kind
        }

    def _plain(self) -> str:
        parts = [f"{self._phase[0]:<9}", f"env steps {int(self._env_steps):,}"]
        fraction, eta_s = self.fraction(), self.eta_s()
        if fraction is not None:
            parts.append(f"{fraction:.0%}")
        if eta_s is not None:
            parts.append(f"ETA {duration(eta_s)}")
        if "env_steps_per_s" in self._perf:
            parts.append(f"{self._perf['env_steps_per_s']:,.0f} steps/s")
        returns = self._mean_returns("episode")
        if returns:
            parts.append("return " + ", ".join(f"{role} {value:.4g}".strip() for role, value in returns.items()))
        return "  ".join(parts)

    def _render(self) -> Any:
        """The live panel."""
        from rich import box
        from rich.console import Group
        from rich.panel import Panel as Box
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        name, detail = self._phase
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1)
        head.add_column(justify="right")
        state = f"{name} {detail}".rstrip() + (f" ({duration(now - self._phase_began)})" if name != "training" else "")
        head.add_row(
            Text(state, style="bold yellow" if name == "compiling" else "bold"), f"{duration(now - self._began)}"
        )
        fraction, eta_s = self.fraction(), self.eta_s()
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        rest = f"{fraction:.0%}" if fraction is not None else ""
        rest += f"  ETA {duration(eta_s)}" if eta_s is not None else ""
        bar.add_row(ProgressBar(total=1.0, completed=fraction or 0.0), Text(rest))
        limit = f" of {int(self._stop['env_steps']):,}" if "env_steps" in self._stop else ""
        speed = f"   {self._perf['env_steps_per_s']:,.0f} steps/s" if "env_steps_per_s" in self._perf else ""
        counts = Text(f"env steps {int(self._env_steps):,}{limit}   updates {self._updates:,}{speed}")
        parts: list[Any] = [head, bar, counts]
        training, evaluation = self._mean_returns("episode"), self._mean_returns("eval")
        if training or evaluation:
            table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
            table.add_column("role")
            table.add_column("return (training)", justify="right")
            table.add_column("return (evaluation)", justify="right")
            for role in sorted({*training, *evaluation}):
                cells = [f"{found[role]:.4g}" if role in found else "-" for found in (training, evaluation)]
                table.add_row(Text(role or "all"), *cells)
            parts.append(table)
        return Box(Group(*parts), title=Text(self.title.translate(_CONTROL)), border_style="blue")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if whole < 60:
        return f"{whole} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{hours} h {minutes_left:02d} min" if days == 0 else f"{days} d {hours_left} h"


class ConsoleSink:
    """Feeds a panel with rows."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def write(self, row: Row) -> None:
        """Show the row; an event's message as a line."""
        if row.get("kind") == "event":
            self._panel.line(f"note: {row.get('message', '')}")
        else:
            self._panel.row(row)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """The panel is closed by whoever opened it."""
