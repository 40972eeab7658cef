"""The report as JSON, and the table, the page, the model card and the comparison drawn from it."""
