"""MLflow: a federation's run with its rounds, the registered model, its promotion. The only package that imports mlflow.

    server.py     where MLflow is, a client for it, its errors as ours
    runs.py       rounds and results: `AsyncTracker` (aggregation), `Tracker` (evaluation)
    models.py     the registered model; a teacher's pyfunc
    registry.py   candidate, champion, those before: `Registry` (promotion, `promote`, `rollback`)
    gate.py       whether a candidate becomes champion

mlflow takes seconds to import, so every function imports it when it needs it; so does torch, which the hub does not have.
"""
