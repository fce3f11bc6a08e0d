"""The files of models that came from elsewhere, looked at before anything opens them."""
