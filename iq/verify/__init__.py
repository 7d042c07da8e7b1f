"""Runs the kernels of a bundle on a device and holds them against numpy.

From the bottom up: `references` (models and tolerances), `cases` (inputs, and what is measured of the outputs), `peaks` (the roofline's
rates), `results`, `devices` (where kernels run), `run` (all kernels of a bundle), `report` (HTML).
"""
