"""The templates of pages, which escape what they are given, and a table by itself."""

import jinja2

from si_jax.reporting.tables import Table

PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("si_jax.reporting"),
    autoescape=lambda name: name is None or name.endswith(".html"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def html_table(table: Table) -> str:
    """A table under its title, as HTML without a style of its own."""
    source = '{% from "macros.html" import table %}{{ table(shown) }}'
    return PAGES.from_string(source).render(shown=table)
