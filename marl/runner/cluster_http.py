"""The dashboard of a Ray head over plain HTTP: is it there, is it the right one, may we, and its log files.

Ray's own client is asked only after this, so that each thing that can be wrong is one clear line, at once. Imports no
Ray.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from marl.core.errors import RunError, UserError, did_you_mean

SUPPORTED = ((2, 55), (2, 70))  # Ray on the cluster: at least, less than
TIMEOUT_S = 20.0
EXAMPLE = "http://127.0.0.1:8265"


def dashboard_url(address: str) -> str:
    """An address as `scheme://host:port`, the form in which Ray's jobs are reached.

    Raises: UserError for anything else, with the likely slip.
    """
    text = address.strip()
    parts = urllib.parse.urlsplit(text if "://" in text else f"//{text}")
    expected = f"expected the address of the dashboard, such as {EXAMPLE}"
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme == "ray":
        raise UserError(f"--address {address}: ray:// is Ray Client's; {expected}")
    if parts.scheme and parts.scheme not in ("http", "https"):
        near = did_you_mean(parts.scheme, ("http", "https"))
        raise UserError(f"--address {address}: unknown scheme '{parts.scheme}'; {expected}{near}")
    if not host or port is None or parts.path.strip("/") or parts.query or parts.username:
        raise UserError(f"--address {address}: not of the form http://HOST:PORT; {expected}")
    if not parts.scheme:
        raise UserError(f"--address {address}: no scheme; {expected}; did you mean 'http://{text}'?")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{port}"


def auth_headers(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header with the token of the cluster, found where Ray finds it: `RAY_AUTH_TOKEN`, the file that
    `RAY_AUTH_TOKEN_PATH` names, `~/.ray/auth_token`. Empty if there is none, or `RAY_AUTH_MODE` is `disabled`.

    Raises: UserError if the named file cannot be read or is empty.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and named:
        try:
            token = Path(named).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise UserError(f"RAY_AUTH_TOKEN_PATH={named}: {reason}; expected a file that holds a token") from None
        if not token:
            raise UserError(f"RAY_AUTH_TOKEN_PATH={named}: the file is empty; expected a token")
    if not token:
        try:
            token = (Path.home() / ".ray" / "auth_token").read_text().strip()
        except (OSError, RuntimeError, UnicodeDecodeError):
            return {}
    if not token.isascii() or not token.isprintable():
        raise UserError("the token holds characters that no HTTP header may; expected one line of letters and digits")
    return {"Authorization": f"Bearer {token}"} if token else {}


def open_url(
    url: str,
    path: str,
    headers: Mapping[str, str],
    query: Mapping[str, str] | None = None,
    *,
    timeout: float = TIMEOUT_S,
) -> IO[bytes]:
    """The answer to a GET, to be read and closed.

    Raises: UserError if nobody answers or the token is missing or wrong; RunError for any other refusal.
    """
    full = f"{url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    try:
        found: IO[bytes] = urllib.request.urlopen(urllib.request.Request(full, headers=dict(headers)), timeout=timeout)
        return found
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(200).decode(errors="replace").strip().partition("\n")[0]
        raise _refusal(url, error.code, text) from None
    except http.client.HTTPException as error:  # Ray's own port 6379, for example
        raise RunError(f"{url} does not speak HTTP: {type(error).__name__}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise UserError(
            f"no Ray head answers at {url} ({str(reason).lower()}); is it up, and is this its dashboard's port? "
            "A head of your own: scripts/cluster/local start"
        ) from None


def _refusal(url: str, code: int, text: str) -> UserError | RunError:
    if code == 401:
        return UserError(
            f"{url} wants a token, and none was found (401); expected one in RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
        )
    if code == 403:
        return UserError(f"{url} refuses the token (403); expected that of this cluster in RAY_AUTH_TOKEN")
    return RunError(f"{url} answers with HTTP status {code}: {text or 'no message'}")


def check_head(url: str, headers: Mapping[str, str]) -> str:
    """Is this the dashboard of a Ray that we work with? Returns its version.

    Raises: UserError if nobody answers, it is something else, it refuses us, or its version does not fit.
    """
    try:
        with open_url(url, "/api/version", headers) as answer:
            found: Any = json.loads(answer.read(1 << 16))
        version = str(found["ray_version"])
        numbers = tuple(int(part) for part in version.split(".")[:2])
    except (RunError, ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        raise UserError(f"{url} answers, but not as the dashboard of a Ray head; expected such as {EXAMPLE}") from None
    low, high = SUPPORTED
    if not low <= numbers < high:
        ours = importlib.metadata.version("ray")
        wanted = f"at least {low[0]}.{low[1]} and less than {high[0]}.{high[1]}"
        raise UserError(f"{url} runs Ray {version}; expected {wanted} (here is {ours}): install the same on both sides")
    return version
