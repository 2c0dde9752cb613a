"""From a template of one of the pages to the whole page."""

from pathlib import Path

from stage1_pro.core.report.common import cells

TEMPLATES = [Path(__file__).parents[1] / room for room in ("common", "run", "monitor", "cascade")]
FILTERS = {
    "percent": cells.percent,
    "percent_up": cells.percent_up,
    "gain": cells.gain,
    "thousands": cells.thousands,
}


def fill(template: str, **values: object) -> str:
    """The HTML of a template. Values are escaped unless they are Markup; a name without a value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(**values)
