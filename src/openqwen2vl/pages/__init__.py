"""Self-contained HTML pages with inline charts."""
