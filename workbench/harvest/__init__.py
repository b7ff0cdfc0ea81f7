"""Activations at hook points from a corpus: in one pass, as shuffled batches for training, or kept on disk.

A `Harvest` says what is read where. The same settings give the same activations in the same order, so that a `Buffer`
or a `Store` is resumed by the number of tokens it has taken: their state is small, and nothing is lost.
"""

from workbench.harvest.activations import Activations as Activations
from workbench.harvest.activations import Harvest as Harvest
from workbench.harvest.activations import HarvestError as HarvestError
from workbench.harvest.activations import Source as Source
from workbench.harvest.activations import process_shard as process_shard
from workbench.harvest.buffer import Buffer as Buffer
from workbench.harvest.store import Store as Store
