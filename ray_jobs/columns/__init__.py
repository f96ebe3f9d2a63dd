"""What the job `process` is made of: rows of files, columns with a type, formulas, and what is learned of a column."""
