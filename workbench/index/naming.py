"""Which of a feature's labels stands for it: a person's, an export's, or the best that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from workbench.index.feature_label import PERSON, FeatureLabel
from workbench.index.label_files import Remark
from workbench.index.label_store import Labels
from workbench.index.published import Published


def named(own: Mapping[int, Remark], published: Published, found: Labels) -> dict[int, FeatureLabel]:
    """The label that stands for each feature that has one.

    Args:
        own: what people wrote.
        published: labels of an export.
        found: labels by rule and by models, the best first.
    """
    names = {feature: every[0] for feature, every in found.items()}
    names |= {feature: FeatureLabel(every[0].text, every[0].source) for feature, every in published.items()}
    names |= {feature: FeatureLabel(one.label, PERSON) for feature, one in own.items() if one.label}
    return dict(sorted(names.items()))


def with_names(remarks: Mapping[int, Remark], names: Mapping[int, FeatureLabel]) -> dict[int, Remark]:
    """Remarks in which a feature without a label has the one that stands for it."""
    every = dict(remarks)
    for feature, label in names.items():
        remark = every.get(feature, Remark())
        if not remark.label:
            every[feature] = replace(remark, label=label.text)
    return dict(sorted(every.items()))
