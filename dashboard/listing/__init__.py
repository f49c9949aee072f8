"""The page of all experiments: what is asked for, in which order, and how a row reads."""
