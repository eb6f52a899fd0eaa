"""A hospital's side of a run: its work, its state, the ledger of what left."""
