"""Reports: rows for the terminal and one self-contained `report.html`. Every sentence is computed from the numbers."""
