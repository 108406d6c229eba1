"""From a run to arrays and answers, without pictures: which records count is decided here and only here."""
