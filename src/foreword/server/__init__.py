"""The OpenAI-compatible server: `app.create_app` puts HTTP in front of an engine and a bank."""
