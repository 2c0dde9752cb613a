"""What the pages share: style, cells, templates, rows of intervals."""
