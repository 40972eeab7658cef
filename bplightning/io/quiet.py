"""Silencing other libraries during work that a user need not follow."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers(*, warns: bool = False) -> Iterator[None]:
    """Hide transformers' progress bars and its messages except errors.

    Args:
        warns: Whether its warnings are still shown.
    """
    from transformers.utils import logging as transformers_logging  # deferred: this package needs no torch

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    if not warns:
        transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Hide the messages of loggers below the level of warnings.

    Args:
        names: Names of the loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide what Lightning 2.6 says that a user can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings():
        # A name that torch 2.13 has replaced.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        # Neither holds here: a metric gathers its states from all ranks, and leaves out the examples that the sampler
        # repeats.
        warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders", UserWarning)
        warnings.filterwarnings("ignore", "It is recommended to use `self.log.*, sync_dist=True", UserWarning)
        logger.addFilter(_no_advertisement)
        try:
            yield
        finally:
            logger.removeFilter(_no_advertisement)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()
