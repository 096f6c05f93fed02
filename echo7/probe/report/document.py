"""JSON for programs: an object for each event, or one document at the end. Pure.

Law: within a `schema_version` keys may be added, but none changes its meaning. Times are whole nanoseconds, sizes are
bytes, `loss` is a share from 0 to 1, and null means unknown.
"""

from __future__ import annotations

import json
from typing import Any

from echo7.probe.measure.words import Event
from echo7.probe.result import FlowResult, PingResult, SizeResult

SCHEMA_VERSION = 1


def event_json(event: Event) -> str:
    """Return one line for one event."""
    damage = event.damage
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "type": "probe",
            "word": event.word.value,
            "sequence": event.sequence or None,
            "flow": event.flow,
            "size_bytes": event.size_bytes if event.sequence else None,
            "received_bytes": event.received_bytes if event.received_bytes or event.rtt_ns is not None else None,
            "sent_ns": event.sent_ns,
            "rtt_ns": event.rtt_ns,
            "reordered": event.reordered,
            "damage": damage and damage._asdict() | {"kind": damage.kind.value},
            "reason": event.reason or None,
        }
    )


def summary_json(result: PingResult, indent: int | None = None) -> str:
    """Return the whole run as one object."""
    return json.dumps(as_dict(result), indent=indent)


def as_dict(result: PingResult) -> dict[str, Any]:
    """Return the whole run in types that JSON has."""
    return {
        "schema_version": SCHEMA_VERSION,
        "type": "summary",
        **_part(result),
        "bars": [bar._asdict() for bar in result.bars],
        "path_mtu": result.path_mtu and result.path_mtu._asdict(),
        "flows": [_part(flow) for flow in result.flows],
        "sizes": [_part(size) for size in result.sizes],
    }


def _part(part: PingResult | FlowResult | SizeResult) -> dict[str, Any]:
    counts = part.counts._asdict() | {"loss": part.counts.loss}
    return part._asdict() | {"counts": counts, "rtt": part.rtt and part.rtt._asdict()}
