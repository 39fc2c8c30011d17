"""What runs left in their directories, read again: records, curves, comparisons, and a page of all that."""
