"""How good an ensemble or a model is: metrics, scores, verification, diagnostics, the report."""
