"""Every picture of the page: SVG with a text alternative and the table behind it."""
