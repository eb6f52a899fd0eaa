"""HTML reports: charts and pages. No torch, no MLflow."""
