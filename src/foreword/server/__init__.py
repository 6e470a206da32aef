"""The OpenAI-compatible server: `app.create_app` puts HTTP in front of an engine and a bank.

Imports go one way (a test holds it)::

    app -> ui
    app -> openai -> tasks -> operations
    openai, tasks -> schema

``openai`` and ``tasks`` are route families, ``operations`` is what an operator sets and watches around all of them, and
``schema`` has what request bodies share. ``ui`` imports none of the others: it sends requests to the application.
``background`` runs an application in a thread, for the demo, benchmarks and tests.
"""
