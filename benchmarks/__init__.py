"""Measurements: ratios in one interleaved run, never absolute claims."""
