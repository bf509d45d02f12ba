"""The way to the device: whether it answers, whether it is the one that is meant, and whether the clocks agree."""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from ..thresholds import limit
from .words import OFFLINE, duration, moment

__all__ = ["clock_skew", "host_key", "reachability"]


def reachability(evidence: Evidence) -> Finding:
    """Whether the device answers, and takes a key of ours."""
    name, link = "reachability", evidence.link
    if link is None:
        return unknown(name, OFFLINE)
    if link.over == "local":
        return ok(name, "this machine: there is no way to go")
    figures = {"connect_ms": link.connect_ms, "round_trip_ms": link.round_trip_ms}
    if not link.reachable:
        return fault(
            name,
            link.problem or "no answer",
            brief="the device cannot be reached",
            cause="it is off, or the network between is down, or its address has changed, or no sshd runs there",
            cure=f"{link.way('ssh', '-v')} true",
            figures=figures,
        )
    if link.login is False:
        return fault(
            name,
            link.problem or "no key of ours is accepted",
            brief="it accepts no key of ours",
            cause="this host's public key is not in the device's authorized_keys, or the entry names another --key",
            cure=link.way("ssh-copy-id"),
            figures=figures,
        )
    if link.connect_ms is None:
        return ok(name, "it answers", **figures)
    trip = "" if link.round_trip_ms is None else f", a command and its answer {link.round_trip_ms:.0f} ms"
    return ok(name, f"connected in {link.connect_ms:.0f} ms{trip}", **figures)


def host_key(evidence: Evidence) -> Finding:
    """Whether the device shows the key that was pinned for it."""
    name, link = "host-key", evidence.link
    if link is None:
        return unknown(name, OFFLINE)
    if link.over == "local":
        return ok(name, "this machine: there is no SSH")
    if link.host_key == "changed":
        return fault(
            name,
            link.problem or "another host key than the pinned one",
            brief="its host key has changed",
            cause="the device was set up anew, or another machine has its address, or somebody listens",
            cure=f"kedge device trust {link.stranger or evidence.device} --replace --fingerprint FINGERPRINT"
            "  # as read on the device itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    if link.host_key == "not pinned":
        return fault(
            name,
            link.problem or "no host key is pinned",
            brief="no host key is pinned",
            cause="nobody has compared the device's host key yet",
            cure=f"kedge device trust {link.stranger or evidence.device}",
        )
    if link.host_key is None:
        return unknown(name, "not looked at: there is no connection")
    return ok(name, "it shows the pinned key")


def clock_skew(evidence: Evidence) -> Finding:
    """Whether the device's clock is right: by this host's, and by what the device wrote down itself."""
    name = "clock-skew"
    section = evidence.section("system")
    synchronised = section.data.flag("synchronised")
    follows = {True: "it follows a time server", False: "it follows no time server", None: ""}[synchronised]
    set_time = evidence.shell("sudo timedatectl set-ntp true")
    ahead_s = _own_future_s(evidence)
    if ahead_s is not None and ahead_s > limit("clock_skew_fault"):
        return fault(
            name,
            f"the device's clock went back: it has written down what happened {duration(ahead_s)} from now",
            brief=f"clock {duration(ahead_s)} behind its own journal",
            cause="a clock without a battery begins at an old date, until it hears a time server",
            cure=set_time,
            figures={"journal_ahead_s": ahead_s, "synchronised": synchronised},
        )
    clock = None if evidence.link is None else evidence.link.clock
    if clock is None:
        at = f"its clock stood at {moment(evidence.at_s)}" if evidence.at_s is not None else ""
        why = OFFLINE if evidence.link is None and evidence.told else section.why or "the device told no time"
        return unknown(name, "; ".join(filter(None, (why, at, follows))), synchronised=synchronised)
    skew_s = max(abs(clock.behind_s) - clock.uncertainty_s, 0)
    figures = {
        "behind_s": round(clock.behind_s, 3),
        "uncertainty_s": round(clock.uncertainty_s, 3),
        "synchronised": synchronised,
    }
    side = "behind" if clock.behind_s > 0 else "ahead of"
    if skew_s <= limit("clock_skew_warning"):
        near = f"the same as here, to {duration(max(abs(clock.behind_s), clock.uncertainty_s))}"
        return ok(name, ", ".join(filter(None, (near, follows))), **figures)
    verdict = fault if skew_s > limit("clock_skew_fault") else warning
    return verdict(
        name,
        f"the device's clock is {duration(clock.behind_s)} {side} this host's"
        f" (±{duration(clock.uncertainty_s)}){'; ' + follows if follows else ''}",
        brief=f"clock {duration(clock.behind_s)} {side.removesuffix(' of')}",
        cause="it follows a time server, so this host's own clock may be what is wrong"
        if synchronised
        else "it hears no time server: after a power cut it goes on from an old date",
        cure="timedatectl  # on this host, then on the device" if synchronised else set_time,
        figures=figures,
    )


def _own_future_s(evidence: Evidence) -> float | None:
    """By how many seconds what the device wrote down is later than its clock."""
    now = evidence.at_s
    entries = evidence.data("journal").nodes("entries")
    written = [at for entry in entries if (at := entry.amount("at_s")) is not None]
    return max(written) - now if written and now is not None else None
