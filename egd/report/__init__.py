"""Reports: tables, figures and one page from run folders. They depend on the format of ``summary.json`` and on no domain."""
