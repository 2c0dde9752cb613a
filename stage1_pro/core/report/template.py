"""From a template beside this file to a whole page."""

from pathlib import Path

from stage1_pro.core.report import tables

FILTERS = {
    "percent": tables.percent,
    "percent_up": tables.percent_up,
    "thousands": tables.thousands,
}


def fill(template: str, **values: object) -> str:
    """The HTML of a template. Values are escaped unless they are Markup; a name without a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= FILTERS
    return environment.get_template(template).render(**values)
