"""The policy servers of a run on Ray: started, given every version, started again when they are lost."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from marl.core.errors import RunError
from marl.dataflow.parts import Blueprint
from marl.dataflow.ray_crew import GIVE_UP, Losses, LostError, ProcessOptions, Remote, get, now
from marl.dataflow.shells import ServerShell

LOOK_S = 1.0  # between two looks at every server
ANSWER_LIMIT_S = 60.0  # one that does not say what it has done for so long is ended


class RayServer(ServerShell):
    """A policy server that can be reached over the network at the address that Ray knows its node by."""

    def __init__(
        self, blueprint: Blueprint, identity: str, lanes: int, together: bool, folder: str | None, network: bool
    ) -> None:
        host: Any = None
        if network:
            from ray.util import get_node_ip_address

            host = get_node_ip_address()  # type: ignore[no-untyped-call]
        super().__init__(blueprint, identity, lanes, together, folder, host)


@dataclasses.dataclass
class _Server:
    remote: Remote
    endpoints: dict[str, Any]
    looked: Any = None  # the reference to its last counters
    looked_at: float = 0.0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: Losses = dataclasses.field(default_factory=Losses)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


class Servers:
    """lanes: of a request.  together: answer several requests in one call.  clients: most that ask at a time.  folder:
    for sockets, where all of the run is on this machine; None: other nodes may take part.  limit: so many losses of one
    within so many seconds are too many."""

    def __init__(
        self,
        count: int,
        blueprint: Blueprint,
        identity: str,
        options: ProcessOptions,
        *,
        lanes: int,
        together: bool,
        clients: int,
        folder: Path | None,
        limit: tuple[int, float] = GIVE_UP,
    ) -> None:
        self.limit = limit
        self.count, self.blueprint, self.identity, self.options = count, blueprint, identity, options
        self.lanes, self.together, self.clients, self.folder = lanes, together, clients, folder
        self._held: dict[int, Any] = {}  # references to the weights that servers hold, by version
        self.servers: list[_Server] = []

    def start(self, version: int, weights: Any) -> None:
        """Start all. weights: a reference to this version's. Raises: RunError if one does not start."""
        self._held = {version: weights}
        begun = [self._begin(index) for index in range(self.count)]
        for remote, answer in begun:
            about, endpoints = get(answer)
            self.servers.append(_Server(remote, endpoints, about=about, losses=Losses(limit=self.limit)))

    def _begin(self, index: int) -> tuple[Remote, Any]:
        own = None
        if self.folder is not None:
            own = self.folder / f"server-{index}"
            own.mkdir(mode=0o700, exist_ok=True)
        path = None if own is None else str(own)
        arguments = (self.blueprint, self.identity, self.lanes, self.together, path, self.folder is None)
        remote = Remote(RayServer, arguments, self.options)
        (first, weights), *others = sorted(self._held.items())
        answer = remote.call("start", first, weights, self.clients)
        for version, weights in others:  # older ones first: a request for what is older than all is refused
            remote.call("load", version, weights, list(self._held))
        return remote, answer

    def endpoints(self, actor: int) -> dict[str, Any] | None:
        """What an actor needs to reach its server; None if there are no servers."""
        return self.servers[actor % self.count].endpoints if self.servers else None

    def load(self, version: int, weights: Any, used: set[int]) -> None:
        """Give all a version; a request that comes before it waits there. used: versions that slots still act with."""
        if not self.servers:
            return
        self._held = {v: held for v, held in self._held.items() if v in used} | {version: weights}
        for server in self.servers:
            server.remote.call("load", version, weights, list(self._held))

    def look(self) -> tuple[float, list[tuple[str, str]], list[int]]:
        """Look after all, at most once a second.

        Returns: seconds that they were busy since, (event, words), and actors whose server is elsewhere now.
        Raises: RunError if one keeps dying.
        """
        import ray

        busy, events, moved = 0.0, [], []
        for index, server in enumerate(self.servers):
            late = server.looked is not None and now() - server.looked_at > ANSWER_LIMIT_S
            if server.looked is not None and (late or ray.wait([server.looked], timeout=0)[0]):
                try:
                    seen = get(server.looked, 0.0 if late else ANSWER_LIMIT_S)
                except LostError as error:
                    words, elsewhere = self._again(index, str(error))
                    events.append(("policy server restarted", words))
                    moved += [index] if elsewhere else []
                    continue
                busy += seen["busy_s"] - server.before.get("busy_s", 0.0)
                server.before, server.looked = seen, None
            if server.looked is None and now() - server.looked_at > LOOK_S:
                server.looked, server.looked_at = server.remote.call("counters"), now()
        return busy, events, moved

    def _again(self, index: int, why: str) -> tuple[str, bool]:
        began, server = now(), self.servers[index]
        while True:
            wait = server.losses.note(now())
            if wait is None:
                raise RunError(f"policy server {index} was lost {server.losses.total} times ({why}), so the run stops")
            server.remote.kill()
            server.remote, answer = self._begin(index)
            try:
                server.about, endpoints = get(answer)
                break
            except LostError as error:
                why = f"{why}; then {error}"
                time.sleep(wait)
        elsewhere = endpoints != server.endpoints
        server.endpoints, server.looked, server.looked_at, server.before = endpoints, None, now(), {}
        return f"policy server {index}: {why}; it answers again after {now() - began:.1f} s", elsewhere

    def close(self) -> None:
        """End all."""
        for server in self.servers:
            server.remote.kill()
