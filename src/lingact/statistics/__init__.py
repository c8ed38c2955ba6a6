"""Bootstrap intervals, paired tests and corrections for many tests."""
