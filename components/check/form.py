"""The run form of both pipelines: parameter -> field of the federation's schema. Standard library only.

Read by the graphs, by `fedhelp compile` (menus for enumerations) and by check (which applies the form to the file).
"""

FIELDS = {
    "method": "algorithm.method",
    "normalisation": "algorithm.normalisation",
    "rounds": "algorithm.rounds",
    "local_epochs": "algorithm.local_epochs",
    "batch_size": "algorithm.batch_size",
    "public_steps": "algorithm.public_steps",
    "learning_rate": "algorithm.optimizer.learning_rate",
    "temperature": "algorithm.temperature",
    "distillation_weight": "algorithm.distillation_weight",
    "rank_weight": "algorithm.rank_weight",
    "weighting": "algorithm.weighting",
    "seed": "runtime.seed",
    "min_silos": "protocol.min_silos",
    "round_deadline": "protocol.round_deadline",
    "promotion_mode": "promotion.mode",
}

# kfp 2.17 cannot express enumerations in Python: `fedhelp compile` writes them into the YAML, and the UI shows menus.
LITERALS = {
    "method": ["fedhelp", "fedavg", "fedprox", "fedhelp-no-api", "fedhelp-no-rank", "fedhelp-symmetric", "fedhelp-one-way"],
    "normalisation": ["shared", "silo"],
    "weighting": ["uniform", "samples"],
    "promotion_mode": ["gate", "manual"],
}
