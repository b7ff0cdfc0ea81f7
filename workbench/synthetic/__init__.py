"""Languages whose truth is known."""

from workbench.synthetic.tokfsm import TokFSM as TokFSM
