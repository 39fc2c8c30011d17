"""Which documents are worth learning from: filters, languages, personal data, evaluation texts, duplicates."""
