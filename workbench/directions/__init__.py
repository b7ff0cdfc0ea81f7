"""Directions: vectors at one or several layers that steer together, and the files of other tools that hold them."""

from workbench.directions.direction import Direction as Direction
from workbench.directions.direction import load_direction as load_direction
from workbench.directions.errors import DirectionError as DirectionError
