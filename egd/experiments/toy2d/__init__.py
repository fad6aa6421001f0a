"""The 2-D data sets of CEP (arXiv:2304.12824) with their energies, on which the estimators of E_t are compared."""

from egd.experiments.toy2d.data import DATA_SETS, DataSet, find_data_set
from egd.experiments.toy2d.exact import Draws

__all__ = ["DATA_SETS", "DataSet", "Draws", "find_data_set"]
