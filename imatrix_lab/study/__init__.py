"""A recipe in, results out: the steps of a study, in parallel and one after another."""
