"""From run folders to tables, figures and one page: knows the format of ``summary.json`` and no domain."""
