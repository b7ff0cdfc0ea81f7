"""What is interesting on a text: findings, each with what happens when it is taken out."""

from workbench.findings.errors import FindingError as FindingError
from workbench.findings.results import Ablation as Ablation
from workbench.findings.results import Finding as Finding
from workbench.findings.results import Scan as Scan
from workbench.findings.scan import scan as scan
