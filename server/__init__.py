"""Serves people over HTTP: the page, and later the queue and its API."""
