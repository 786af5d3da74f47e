"""Sources, records, corpora, templates and tokens: from files to arrays that a model can be fed."""
