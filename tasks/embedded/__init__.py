"""Generated data sets, starting models and defaults: what each task runs on when no data is given."""
