"""Talk to an inference server over HTTP: JSON there and back, each attempt with its time-out.

urllib3 does it: connections that are kept and shared by threads, TLS, and time-outs for connecting and for reading, in
one package that needs no other and that most environments have. Its own retries are off: an attempt here also waits for
what a server writes besides its reply, and ends by a deadline, not by a count.
"""

from __future__ import annotations

from typing import Any

import msgspec
import urllib3

_CONNECT_S = 10.0
_SHOWN = 300
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 413, 422})


class UnansweredError(Exception):
    """There was no usable answer this time; the text says why, and fits after "because"."""


class RefusedError(Exception):
    """The server answered that it will not do this.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def is_prompt_s(self) -> bool:
        """Tell if it speaks of this request; another one may be taken."""
        return self.status in _REFUSED


class Endpoint:
    """A server at a URL.

    Args:
        timeout_s: how long an attempt may take until it is answered.
        connections: how many are kept open.
        api_key: sent as a bearer token.
    """

    def __init__(self, url: str, *, timeout_s: float, connections: int, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            block=False,
            retries=False,
            timeout=urllib3.Timeout(connect=min(_CONNECT_S, timeout_s), read=timeout_s),
        )

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None, {})

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        """Return the reply's JSON.

        Raises:
            UnansweredError: another attempt may be answered.
            RefusedError: another attempt would be refused as well.
        """
        return self._ask("POST", path, msgspec.json.encode(body), headers or {})

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        sent = self._headers | headers | ({"Content-Type": "application/json"} if body is not None else {})
        try:
            reply = self._pool.request(method, self.url + path, body=body, headers=sent)
            data = reply.data
        except urllib3.exceptions.LocationParseError as error:
            raise RefusedError(0, f"{self.url} is no URL ({error})") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnansweredError(f"{path} failed with {type(error).__name__}: {_short(str(error))}") from None
        if reply.status == 200:
            return _decoded(path, data)
        text = f"{path} answered {reply.status}: {_short(data.decode('utf-8', 'replace'))}"
        if reply.status in _PASSING:
            raise UnansweredError(text)
        raise RefusedError(reply.status, text)

    def close(self) -> None:
        self._pool.clear()


def _decoded(path: str, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError(200, f"{path} answered with what is no JSON ({error})") from None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
