"""Evaluation: data sets, metrics, the run over a data set, and its report."""
