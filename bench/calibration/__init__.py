"""Error rates of the statistics, by simulation, each beside a naive method that is seen to fail.

    make calibrate

A scenario simulates whole experiments. Its claims are bounds on rates: how often the service's
method errs, or covers the truth. The naive method beside it reads the same experiments and has to
break the same bound: a simulation that could not tell the two apart would prove nothing.
`tests/unit/test_calibration.py` holds every claim with 1,000 experiments.

What is read is decided by the functions of `analysis/inference`. Where they would take too long for
every look of every experiment, `twins.py` says where to look, in numpy, and the scenario checks it
against those functions.
"""
