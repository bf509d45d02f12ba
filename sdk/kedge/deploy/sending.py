"""The push of a deploy: over connections that break, and told in two states, for the device hashes what has arrived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kedge_agent.formats.offer import Offer

from ..errors import BusyError, UnreachableError
from ..release.bundle import Release
from ..transport.base import Deadline, Transport
from ..transport.upload import Progress, UploadResult, upload
from .patience import Patience, hang_up

__all__ = ["send"]

_CONNECT_S = 30.0


def send(
    transport: Transport,
    release: Release,
    offer: Offer,
    *,
    progress: Progress,
    state: Callable[[str], None],
    limit_bytes_per_s: int | None,
    patience_s: float,
    deadline: Deadline | None = None,
) -> UploadResult:
    """Push a release. Where the connection breaks it is made again, and what was acknowledged is not sent twice.

    Args:
        state: told of push and verify as they begin.
        patience_s: how long the connection is tried to be made again from where it broke, unless more is acknowledged.
        deadline: by which it must be over, as `upload` heeds it.

    Returns:
        What all tries together sent; of one that broke, each acknowledged byte counts as one that travelled.

    Raises:
        UnreachableError: the connection broke and could not be made again.
        KedgeError: what the device reports.
    """
    patience = Patience(patience_s, deadline)
    before = acknowledged = 0
    broke = verifying = False
    # It may break at the first frame, which may take longer than anybody is patient.
    went_on = True

    def told(done: int, total: int) -> None:
        nonlocal acknowledged, verifying, went_on
        went_on = went_on or done > acknowledged
        acknowledged = done
        progress(done, total)
        if done == total and not verifying:
            verifying = True
            state("verify")

    while True:
        verifying = False
        state("push")
        try:
            channel, protocol = transport.open_receive(
                Deadline.after(_CONNECT_S, f"reaching {transport.name}", deadline)
            )
            pushed = upload(
                channel,
                transport.name,
                release.manifest_bytes,
                release.files(),
                told,
                offer=offer,
                protocol=protocol,
                limit_bytes_per_s=limit_bytes_per_s,
                open_more=transport.open_receive,
                deadline=deadline,
            )
        except (UnreachableError, BusyError) as error:
            if went_on:
                patience.renew()
                went_on = False
            # After a break, the device may not have noticed yet that the push before is over.
            if (isinstance(error, BusyError) and not broke) or not patience.wait():
                raise
            if isinstance(error, UnreachableError):
                hang_up(transport)
            broke = True
            before, acknowledged = before + acknowledged, 0
            continue
        return replace(
            pushed,
            sent_bytes=pushed.sent_bytes + before,
            wire_bytes=pushed.wire_bytes + before,
            skipped_bytes=pushed.skipped_bytes - before,
        )
