"""The page of the coverage table."""
def page(names, records): return ""
