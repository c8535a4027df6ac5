"""Templates to HTML. Everything is escaped, and a name that a template does not get is an error."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from service.ui.filters import FILTERS

STATIC = Path(__file__).parent / "static"

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(FILTERS)
_environment.globals.update(version=version("token-curator"), section="", principal=None, csrf="")


def render(template: str, **values: Any) -> str:
    """Render a page."""
    return _environment.get_template(template).render(**values)
