"""The run form of both pipelines: parameter -> field of the federation's schema. Standard library only.

Read by the graphs, by `fedhelp compile` (menus for enumerations) and by check (which applies the form to the file).
Fields in which one compares runs of the same hospitals are here; all others are the file's (docs/decisions/0030).
"""

FIELDS = {
    "method": "algorithm.method",
    "normalisation": "algorithm.normalisation",
    "rounds": "algorithm.rounds",
    "local_epochs": "algorithm.local_epochs",
    "learning_rate": "algorithm.optimizer.learning_rate",
    "seed": "runtime.seed",
    "promotion_mode": "promotion.mode",
}

# kfp 2.17 cannot express enumerations in Python: `fedhelp compile` writes them into the YAML, and the UI shows menus.
LITERALS = {
    "method": ["fedhelp", "fedavg", "fedprox", "scaffold", "fedhelp-no-api", "fedhelp-no-rank", "fedhelp-symmetric", "fedhelp-one-way"],
    "normalisation": ["shared", "silo"],
    "promotion_mode": ["gate", "manual"],
}
