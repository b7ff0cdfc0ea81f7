"""Languages whose truth is known, and measurements of models of them."""

from workbench.synthetic.states import StateCounts as StateCounts
from workbench.synthetic.states import capture_at_states as capture_at_states
from workbench.synthetic.states import count_codes as count_codes
from workbench.synthetic.states import force_state as force_state
from workbench.synthetic.states import next_states as next_states
from workbench.synthetic.states import state_codes as state_codes
from workbench.synthetic.states import state_column as state_column
from workbench.synthetic.tokfsm import TokFSM as TokFSM
