"""Every architecture of the installed Transformers, as a tiny random model beside plain Transformers."""
