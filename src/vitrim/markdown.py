"""Templates of Markdown files."""

from pathlib import Path

import jinja2


def markdown_templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder, for Markdown; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # nothing here is served
    )
