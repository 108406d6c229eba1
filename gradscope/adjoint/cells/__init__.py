"""One module per cell: its gates and its reverse time."""
