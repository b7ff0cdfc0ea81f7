"""Directions: vectors at one or several layers that steer together, and the files of other tools that hold them."""

from workbench.directions.direction import Direction as Direction
from workbench.directions.direction import load_direction as load_direction
from workbench.directions.errors import DirectionError as DirectionError
from workbench.directions.finding import find_direction as find_direction
from workbench.directions.finding import find_directions as find_directions
from workbench.directions.probing import Probe as Probe
from workbench.directions.probing import probe as probe
from workbench.directions.separation import Separation as Separation
