"""The parity suite, to be run against one's own bundle: ``pytest --pyargs deploykit.suite``.

``plugin`` is what pytest loads wherever deploykit is installed; ``conftest`` and the tests are read
only by who asks for the suite.
"""
