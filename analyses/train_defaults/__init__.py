"""Train, index and measure the dictionaries that ship for the default model."""

from analyses.train_defaults.study import STUDY as STUDY
