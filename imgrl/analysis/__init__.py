"""What training did to the weights: update sparsity, spectra, masks, and the nulls they must be read against."""

from imgrl.analysis.compare import Pairing, compare, pair
from imgrl.analysis.figures import Layer, Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.report import document
from imgrl.analysis.weights import Matrix, as_matrix, open_weights

__all__ = [
    "Layer",
    "Matrix",
    "Pairing",
    "Settings",
    "as_matrix",
    "compare",
    "document",
    "measure",
    "open_weights",
    "pair",
]
