"""The figures of a service, read back by Prometheus' own parser."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: bytes) -> Figures:
    """Every sample by name and labels."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(services: Any, name: str, **labels: str) -> float:
    """One of them, as opened services show it now."""
    return read(services.metrics.expose(services.readiness.checks()))[name, frozenset(labels.items())]
