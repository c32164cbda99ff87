"""From files of records to judgements: which runs are compared, and how they are adjusted."""
