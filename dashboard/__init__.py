"""The pages: see an experiment, understand it, act on it. A view on experiments and analysis."""
