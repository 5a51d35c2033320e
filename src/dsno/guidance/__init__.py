"""Guides as objects: what pulls the samples of any teacher towards what it was never trained for."""

from dsno.guidance.guides import (
    ClassifierFree,
    CleanClassifier,
    Counted,
    DensityGuide,
    LossGuide,
    NoisyClassifier,
    Sum,
    Untold,
)

__all__ = [
    "ClassifierFree",
    "CleanClassifier",
    "Counted",
    "DensityGuide",
    "LossGuide",
    "NoisyClassifier",
    "Sum",
    "Untold",
]
