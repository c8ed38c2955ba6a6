"""What a run found, in words and tables: rows for the terminal and one self-contained `report.html`. Every sentence is computed from the numbers."""
