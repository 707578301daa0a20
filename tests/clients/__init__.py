"""Modules of other packages, as they are on PyPI, under this package's callbacks: `make clients`."""
