"""What OpenSSH's own configuration says of a host, and which hosts it has: `ssh -G` resolves it."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

from ..errors import BadInputError
from ..transport.address import MAX_JUMPS, SshAddress, expanded
from ..transport.hostkeys import HostKey
from ..transport.known_hosts import KNOWN_HOSTS, known_key

__all__ = ["Alias", "hosts_of", "resolve"]

_TIME_LIMIT_S = 15.0
_MAX_BYTES = 1024 * 1024
_MAX_DEPTH = 16
_USUAL_KEYS = re.compile(r"~/\.ssh/id_(rsa|dsa|xmss|ecdsa|ecdsa_sk|ed25519|ed25519_sk)")
_TOKEN = re.compile(r"%(.?)")
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[^@\s:\[\]/]+)(?::(?P<port>\d{1,5}))?/?"
)


@dataclass(frozen=True)
class Alias:
    """What `ssh ALIAS` would do. known_hosts: where the host's key is looked for; known_as: under which name."""

    address: SshAddress
    known_hosts: tuple[str, ...]
    known_as: str

    def key(self) -> HostKey | None:
        """The host key that is known already."""
        return known_key(
            self.known_as, self.address.port if self.known_as == self.address.host else 22, self.known_hosts
        )


def resolve(
    alias: str, config: Path | None = None, *, user: str | None = None, port: str | None = None, depth: int = 0
) -> Alias:
    """Where `ssh ALIAS` would go, with which keys and through which hosts; their host keys come from known_hosts.

    Args:
        alias: as in `Host ALIAS`.
        config: a file in place of the user's and the system's.

    Raises:
        BadInputError: there is no `ssh`, it does not understand its configuration, or goes a way that we cannot.
    """
    if depth > MAX_JUMPS:
        raise BadInputError(f"ssh {alias}: the jump hosts go in a circle", hint="mend ProxyJump in the ssh config")
    said = _settings(alias, config, user, port)
    proxy = said.get("proxycommand", ["none"])[0]
    if proxy != "none":
        raise BadInputError(
            f"ssh {alias}: ProxyCommand {proxy!r} is not run by kedge",
            hint="use ProxyJump in the ssh config, or jump = … in the inventory",
        )
    host = said["hostname"][0]
    known_hosts = tuple(
        path
        for key in ("userknownhostsfile", "globalknownhostsfile")
        for line in said.get(key, [])
        for path in _files(line)
        if path != "none"
    )
    tokens = {"n": alias, "h": host, "p": said["port"][0], "r": said["user"][0]}
    address = SshAddress(
        host=host,
        port=int(said["port"][0]),
        user=said["user"][0],
        identity=_identity(said, tokens),
        certificate=_first(said.get("certificatefile", []), tokens),
        agent=_agent(said),
        jumps=_jumps(said.get("proxyjump", ["none"])[0], config, depth),
    )
    return Alias(address, known_hosts or KNOWN_HOSTS, said.get("hostkeyalias", [host])[0])


def _settings(alias: str, config: Path | None, user: str | None, port: str | None) -> dict[str, list[str]]:
    if alias.startswith("-") or not alias or len(alias) > 255:
        raise BadInputError(f"not a host of an ssh config: {alias!r}")
    options = [*(("-F", os.fspath(expanded(config))) if config else ()), *(("-l", user) if user else ())]
    options += ("-p", port) if port else ()
    try:
        done = subprocess.run(
            ["ssh", "-G", *options, "--", alias],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise BadInputError(
            "there is no ssh on this machine", hint="install OpenSSH's client, or name host and user"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BadInputError(
            f"ssh -G {alias} took more than {_TIME_LIMIT_S:.0f} s", hint="look for Match exec in the ssh config"
        ) from error
    if done.returncode or len(done.stdout) > _MAX_BYTES:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise BadInputError(
            f"ssh -G {alias} fails: {lines[0] if lines else 'no reason given'}", hint="mend the ssh config"
        )
    said: dict[str, list[str]] = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        if value:
            said.setdefault(key, []).append(value)
    if not {"hostname", "port", "user"} <= said.keys():
        raise BadInputError(f"ssh -G {alias} says no address", hint="mend the ssh config")
    return said


def _files(line: str) -> Iterator[str]:
    """The files that one line names: `ssh -G` writes them without the quotes that held a path with spaces together."""
    words = line.split(" ")
    while words:
        length = next((n for n in range(len(words), 1, -1) if os.path.isfile(" ".join(words[:n]))), 1)
        yield " ".join(words[:length])
        del words[:length]


def _first(paths: Sequence[str], tokens: Mapping[str, str]) -> Path | None:
    """The first that is there; none is named by default."""
    named = [_path(path, tokens) for path in paths if path != "none"]
    return next((path for path in named if os.path.isfile(path)), named[0] if named else None)


def _path(text: str, tokens: Mapping[str, str]) -> Path:
    """ssh_config(5), TOKENS: `ssh -G` puts them in for some keywords, not for those of keys and certificates."""

    def put(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        if match[1] == "d":
            return os.fspath(expanded("~"))
        if match[1] == "u":
            return getpass.getuser()
        if match[1] not in tokens:
            raise BadInputError(
                f"ssh {tokens['n']}: {match[0]} in {text!r} is a token that kedge does not know",
                hint="it knows %d %h %n %p %r %u and %%; or name identity and certificate in the inventory",
            )
        return tokens[match[1]]

    return Path(_TOKEN.sub(put, os.fspath(expanded(text))))


def _identity(said: dict[str, list[str]], tokens: Mapping[str, str]) -> Path | None:
    if not _names_keys(said):
        return None
    return _first(said.get("identityfile", []), tokens)


def _names_keys(said: dict[str, list[str]]) -> bool:
    # `ssh -G` names the usual ones where nobody named any: the agent goes first.
    return not all(path == "none" or _USUAL_KEYS.fullmatch(path) for path in said.get("identityfile", []))


def _agent(said: dict[str, list[str]]) -> bool | str:
    where = said.get("identityagent", ["SSH_AUTH_SOCK"])[0]
    if where == "none" or (said.get("identitiesonly", ["no"])[0] == "yes" and not _names_keys(said)):
        return False
    if where == "SSH_AUTH_SOCK":
        return True
    return os.environ.get(where[1:].strip("{}"), "") or False if where.startswith("$") else where


def _jumps(text: str, config: Path | None, depth: int) -> tuple[SshAddress, ...]:
    """ProxyJump: outermost first; what ssh's configuration says of the first one's own way counts, as in ssh."""
    found: list[SshAddress] = []
    for place, word in enumerate(text.split(",") if text != "none" else []):
        match = _JUMP.fullmatch(word.strip())
        if match is None:
            raise BadInputError(f"not a jump host of an ssh config: {word!r}", hint="mend ProxyJump")
        alias = resolve(match["host"].strip("[]"), config, user=match["user"], port=match["port"], depth=depth + 1)
        if not place:
            found.extend(alias.address.jumps)
        found.append(_known(alias))
    return tuple(found)


def _known(alias: Alias) -> SshAddress:
    return replace(alias.address, jumps=(), host_key=alias.key())


def hosts_of(config: Path) -> list[str]:
    """The names after `Host` in an ssh config and what it includes, each once; patterns are no hosts.

    Raises:
        BadInputError: a file cannot be read.
    """
    return list(dict.fromkeys(_hosts(expanded(config), 0)))


def _hosts(path: Path, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise BadInputError(f"{path}: Include goes too deep", hint="mend the ssh config")
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read: {error.strerror}", hint="name another with --ssh-config"
        ) from error
    if len(text) > _MAX_BYTES:
        raise BadInputError(f"{path} is longer than an ssh config can be ({_MAX_BYTES} bytes)")
    for line in text.decode(errors="replace").splitlines():
        keyword, words = _words(line)
        if keyword == "host":
            yield from (word for word in words if not re.search(r"[*?!]", word) and not word.startswith("-"))
        elif keyword == "include":
            for word in words:
                yield from _included(word, depth)


def _words(line: str) -> tuple[str, list[str]]:
    match = re.match(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)", line)
    if match is None:
        return "", []
    try:
        return match[1].lower(), shlex.split(match[2], comments=True)
    except ValueError:
        return match[1].lower(), match[2].split()


def _included(word: str, depth: int) -> Iterator[str]:
    """ssh_config(5): what is not absolute lies in ~/.ssh; globs are those of glob(7), in lexical order."""
    pattern = expanded(word)
    base = expanded("~/.ssh")
    for found in sorted(glob(os.fspath(pattern if pattern.is_absolute() else base / pattern))):
        yield from _hosts(Path(found), depth + 1)
