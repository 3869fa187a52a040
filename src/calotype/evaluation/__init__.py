"""Every judgement of a trained model: measures, intervals, reference sets, `evaluate`, `compare` and their verdicts."""
