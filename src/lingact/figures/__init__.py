"""Frames and draws as figures, one module for each subject; how they look is settled in `style`."""
