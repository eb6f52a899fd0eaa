"""Component `silo_training`: one silo supervised for all rounds; and the worker inside the hospital."""

SILO_CONFIG_VARIABLE = "FEDHELP_SILO_CONFIG"
"""Names the hospital's silo.yaml inside a worker's container."""
