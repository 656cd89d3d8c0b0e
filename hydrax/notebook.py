"""HTML that notebooks show for an object: small, self-contained, escaped, readable on light and dark pages."""

from __future__ import annotations

import html
from collections.abc import Sequence

# Colours are those of the page: a notebook may be dark. The line of a border takes the colour of the text.
_BOX = "display:inline-block;border:1px solid;border-radius:4px;padding:4px 10px;max-width:100%;overflow:auto"
_CELL = "text-align:right;padding:1px 8px;background:transparent"


def text_box(text: str) -> str:
    """Formats a text of several lines: the first as a title, the others as they are."""
    title, _, rest = text.partition("\n")
    body = f'<pre style="margin:0;background:transparent;color:inherit">{html.escape(rest)}</pre>' if rest else ""
    return f'<div style="{_BOX}"><b>{html.escape(title)}</b>{body}</div>'


def table_box(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Formats a table with a title. Cells are escaped.

    Args:
      title: the title.
      head: the names of the columns.
      rows: the cells of each row, as many as there are columns.
    """

    def line(cells: Sequence[object], tag: str) -> str:
        made = "".join(f'<{tag} style="{_CELL}">{html.escape(str(cell))}</{tag}>' for cell in cells)
        return f'<tr style="background:transparent">{made}</tr>'

    body = line(head, "th") + "".join(line(row, "td") for row in rows)
    return f'<div style="{_BOX}"><b>{html.escape(title)}</b><table style="margin:0">{body}</table></div>'
