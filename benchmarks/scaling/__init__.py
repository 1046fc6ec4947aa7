"""The measures of scale.py: a deep backlog, many processes, waiting and starting."""
