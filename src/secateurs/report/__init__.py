"""What a pruning run leaves to look at: its record, as a page, as figures and as text."""
