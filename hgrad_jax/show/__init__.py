"""How results are shown: tables, figures, progress."""
