"""Figures, one module for each subject; colours and markers are in `style`."""
