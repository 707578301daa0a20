"""Models, data and configurations that run the library, one folder an example."""
