# Nothing for Python here: the contract for cimport is in _range.pxd.
