"""The report: JSON first; the table, the page, the model card and the comparison are drawn from it."""
