"""What the libraries of stores raise, as errors of kedge."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ..errors import (
    AuthenticationRefusedError,
    BadInputError,
    HostKeyChangedError,
    IncompatibleError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
    first_line,
)

__all__ = ["translated"]


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Any store may raise its own library's errors: what is not known better is a store that does not answer.

    Raises:
        KedgeError: in the place of any other.
    """
    try:
        yield
    except KedgeError:
        raise
    except ImportError as error:
        raise IncompatibleError(
            f"{url} needs a library that is not installed: {_said(error)}",
            hint="fsspec names it: s3fs for s3://, gcsfs for gs://, adlfs for abfs://; pip install it beside kedge",
        ) from error
    except FileNotFoundError as error:
        raise BadInputError(
            f"{url}: there is no such folder: {_said(error)}", hint="make it, or name another"
        ) from error
    except PermissionError as error:
        raise AuthenticationRefusedError(
            f"{url}: not allowed: {_said(error)}", hint="check the credentials of this process and what they may do"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise BadInputError(f"{url} cannot be used: {_said(error)}", hint="s3://, gs://, sftp://, file:// …") from error
    except Exception as error:  # each store's library has its own classes
        raise _by_name(url, error) from error


def _by_name(url: str, error: Exception) -> KedgeError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = _said(error)
    if "BadHostKeyException" in kinds:
        return HostKeyChangedError(
            f"{url}: its host key is not the one in ~/.ssh/known_hosts",
            hint="somebody may be listening; if the server was set up anew: ssh-keygen -R HOST, then log in with ssh",
        )
    if "not found in known_hosts" in said:
        return UnknownHostKeyError(
            f"{url}: its host key is not in ~/.ssh/known_hosts",
            hint="log in once with ssh, and compare the fingerprint that it shows",
        )
    refused = {"AuthenticationException", "NoCredentialsError", "ClientAuthenticationError"}
    if kinds & refused or "No authentication methods" in said:
        return AuthenticationRefusedError(f"{url}: {said}", hint="check the keys or credentials of this process")
    return UnreachableError(f"{url} does not answer: {said}", hint="check the URL and the way there, then try again")


def _said(error: Exception) -> str:
    """What a foreign exception says, without what may be a secret in a URL that it names."""
    text = re.sub(r"://[^/\s@]+@", "://…@", first_line(error))
    return re.sub(r"\?[^\s'\"]+", "?…", text)
